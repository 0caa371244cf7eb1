--[[ Shared: what changes whenever something happens to a job. Included by `--@include marks`. ]]
local function mark_of(job)
  local stored = redis.call('HMGET', job, 'fence', 'group', 'moved')
  return stored[1] and (stored[1] .. '|' .. stored[2] .. '|' .. (stored[3] or '')) or ''
end
