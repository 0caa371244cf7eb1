--[[
  Shared: what the end of a job took it has back. Included by `--@include reopen`, behind tasks.
  `deadline` (ms) or ''.
]]
local function reopen_job(p, job_id, owner, from, to, deadline)
  local job = p .. 'j:' .. job_id
  for _, suffix in ipairs({'', ':res', ':prog', ':ev', ':done', ':sig'}) do
    redis.call('PERSIST', job .. suffix)
  end
  local key = redis.call('HGET', job, 'idempotency')
  if key then
    redis.call('PERSIST', key)
  end
  redis.call('SADD', p .. 'live', job_id)
  redis.call('ZREM', p .. 'quar', job_id)
  for _, whose in ipairs(owner == '' and {''} or {'', '|' .. owner}) do
    redis.call('HINCRBY', p .. 'count', from .. whose, -1)
    redis.call('HINCRBY', p .. 'count', to .. whose, 1)
  end
  if deadline ~= '' then
    set_timer(p, 'j', job_id, '', deadline)
  end
end
