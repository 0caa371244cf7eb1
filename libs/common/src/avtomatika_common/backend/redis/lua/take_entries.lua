#!lua flags=allow-oom
--[[
  Make entries of consumers that are not alive mine; those that have none left are forgotten.

  KEYS  stream
  ARGV  p, my name, at most so many
  Returns  {{id, deliveries, payload}, ...}
]]
local stream, me, room = KEYS[1], ARGV[2], tonumber(ARGV[3])
local found = {}
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', stream, 'g')) do
  local name = row[2]
  if name ~= me and redis.call('EXISTS', ARGV[1] .. 'alive:' .. name) == 0 then
    local pending = {}
    if #found < room then
      pending = redis.call('XPENDING', stream, 'g', '-', '+', room - #found, name)
    end
    for _, entry in ipairs(pending) do
      local claimed = redis.call('XCLAIM', stream, 'g', me, '0', entry[1])[1]
      if claimed then
        found[#found + 1] = {entry[1], entry[4] + 1, claimed[2][2]}
      else
        redis.call('XACK', stream, 'g', entry[1])
      end
    end
    if #redis.call('XPENDING', stream, 'g', '-', '+', '1', name) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, 'g', name)
    end
  end
end
return found
