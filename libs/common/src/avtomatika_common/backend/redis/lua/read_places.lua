#!lua flags=no-writes
--[[
  Places of workers that are taken by tasks they are said to have, from a cursor on.

  KEYS  exp
  ARGV  w, cursor, about how many workers
  Returns  {next cursor, {worker, task, number of its offer, ...}, ...}
]]
local cut = redis.call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local found = {cut[1]}
for n = 1, #cut[2], 2 do
  local worker = cut[2][n]
  local places = {worker}
  for _, task_id in ipairs(redis.call('ZRANGE', ARGV[1] .. 'hold:' .. worker, '+inf', '+inf', 'BYSCORE',
    'LIMIT', '0', '256')) do
    places[#places + 1] = task_id
    places[#places + 1] = redis.call('HGET', ARGV[1] .. 'offer:' .. worker, task_id) or ''
  end
  found[#found + 1] = places
end
return found
