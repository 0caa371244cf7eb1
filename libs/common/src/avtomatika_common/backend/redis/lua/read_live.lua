#!lua flags=no-writes
--[[
  Live jobs, from a cursor on.

  KEYS  live
  ARGV  p, cursor, about how many
  Returns  {next cursor, {job, fence, head, cancel, group}, ...}; fence false: there is no such job
]]
local cut = redis.call('SSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local found = {cut[1]}
for _, job_id in ipairs(cut[2]) do
  local stored = redis.call('HMGET', ARGV[1] .. 'j:' .. job_id, 'fence', 'head', 'cancel',
    'group')
  found[#found + 1] = {job_id, stored[1], stored[2], stored[3], stored[4]}
end
return found
