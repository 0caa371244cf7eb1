--[[ Shared: whose an inbox entry is, and what carries a job. Included by `--@include claims`. ]]
local function is_mine(stream, consumer, entry)
  local pending = redis.pcall('XPENDING', stream, 'g', entry, entry, '1')
  return not pending.err and #pending > 0 and pending[1][2] == consumer
end

-- An entry of the job is another one now: its claim follows. Whether there is such a job.
local function follow(job, entry, moved)
  local claim = redis.call('HGET', job, 'claim')
  if not claim then
    return false
  end
  redis.call('HINCRBY', job, 'moved', 1)
  if claim == entry then
    redis.call('HSET', job, 'claim', moved)
  end
  return true
end

local function answer(stream, entry)
  redis.call('XACK', stream, 'g', entry)
  redis.call('XDEL', stream, entry)
end
