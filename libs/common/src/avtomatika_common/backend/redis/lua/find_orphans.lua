#!lua flags=no-writes
--[[
  What belongs to no job, from a cursor on.

  KEYS  tm, deferred, quar or the tasks held by a worker
  ARGV  p, 'timer' | 'deferred' | 'quarantine' | 'lease', cursor, about how many
  Returns  {next cursor, name, ...}
]]
local p, what = ARGV[1], ARGV[2]
local is_hash = what == 'deferred' or what == 'lease'
local cut = redis.call(is_hash and 'HSCAN' or 'ZSCAN', KEYS[1], ARGV[3], 'COUNT', ARGV[4])
local found = {cut[1]}

local function has(key)
  return redis.call('EXISTS', p .. key) == 1
end

local function is_orphan_timer(member)
  local kind, job_id, token = string.match(member, '^(%a)/([^/]*)/(.*)$')
  if kind == 'w' or kind == 'b' or kind == 'j' then
    return not has('j:' .. job_id)
  elseif kind == 'd' or kind == 'c' or kind == 'r' then
    return not has('t:' .. token)
  elseif kind == 'e' then
    return redis.call('HEXISTS', p .. 'deferred', token) == 0
  end
  return false
end

local function has_no_timer(token, packed)
  local entry, job_id = cmsgpack.unpack(packed), ''
  for n = 2, #entry, 2 do
    job_id = entry[n] == 'j' and entry[n + 1] or job_id
  end
  return not redis.call('ZSCORE', p .. 'tm', 'e/' .. job_id .. '/' .. token)
end

local is_orphan = {
  timer = is_orphan_timer,
  deferred = has_no_timer,
  quarantine = function(job_id) return not has('j:' .. job_id) end,
  lease = function(task_id) return not has('t:' .. task_id) end,
}
for n = 1, #cut[2], 2 do
  if is_orphan[what](cut[2][n], cut[2][n + 1]) then
    found[#found + 1] = cut[2][n]
  end
end
return found
