--[[
  Shared: an entry that is told from its job's claim. Included by `--@include apart`.
  Both lanes number their entries by the time, so in one millisecond they use the same ids.
]]
local function add_apart(stream, claim, ...)
  local entry = redis.call('XADD', stream, '*', ...)
  if entry ~= claim then
    return entry
  end
  redis.call('XDEL', stream, entry)
  return redis.call('XADD', stream, '*', ...)
end
