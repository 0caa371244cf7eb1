#!lua flags=allow-oom
--[[
  Make pending entries of a consumer that is not alive mine, and count the delivery on their jobs.

  KEYS  inbox stream
  ARGV  p, alive key of the dead consumer, its name, my name, at most so many
  Returns  'ALIVE', or the entries as XCLAIM gives them
]]
if redis.call('EXISTS', ARGV[2]) == 1 then
  return 'ALIVE'
end
local pending = redis.call('XPENDING', KEYS[1], 'g', '-', '+', ARGV[5], ARGV[3])
if #pending == 0 then
  return {}
end
local ids = {}
for n, entry in ipairs(pending) do
  ids[n] = entry[1]
end
local entries = redis.call('XCLAIM', KEYS[1], 'g', ARGV[4], '0', unpack(ids))
for _, entry in ipairs(entries) do
  local fields = {}
  for n = 1, #(entry[2] or {}), 2 do
    fields[entry[2][n]] = entry[2][n + 1]
  end
  -- A branch's event is settled without a commit of the job, which would count anew. Of signals a job
  -- may have many here; one that runs nothing is none of its tries.
  local claim = fields.j and not fields.b and redis.call('HGET', ARGV[1] .. 'j:' .. fields.j, 'claim')
  if claim and (not fields.n or claim == entry[1]) then
    redis.call('HINCRBY', ARGV[1] .. 'j:' .. fields.j, 'tries', 1)
  end
end
return entries
