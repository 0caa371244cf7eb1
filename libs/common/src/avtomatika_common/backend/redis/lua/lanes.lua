--[[ Shared: what the group of a lane was given so far. Included by `--@include lanes`. ]]
local function last_delivered(lane)
  local info = redis.pcall('XINFO', 'GROUPS', lane)
  if info.err or not info[1] then
    return nil
  end
  for n = 1, #info[1], 2 do
    if info[1][n] == 'last-delivered-id' then
      return info[1][n + 1]
    end
  end
end

local function is_pending(lane, entry)
  return #redis.call('XPENDING', lane, 'g', entry, entry, '1') > 0
end
