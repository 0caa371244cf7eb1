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
  local fields = entry[2]
  for n = 1, #fields, 2 do
    local job = ARGV[1] .. 'j:' .. fields[n + 1]
    if fields[n] == 'j' and redis.call('EXISTS', job) == 1 then
      redis.call('HINCRBY', job, 'tries', 1)
    end
  end
end
return entries
