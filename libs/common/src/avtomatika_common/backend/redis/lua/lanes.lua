--[[ Shared: the entries of a lane, and what its group was given of them. Included by `--@include lanes`. ]]

-- Calls `look(id, fields)` for up to so many entries, fewer where they are large; where to go on, '0' no more.
local function walk_lane(lane, first, last, limit, look)
  local left, bytes = tonumber(limit), 65536
  while left > 0 and bytes > 0 do
    local entry = redis.call('XRANGE', lane, first, last, 'COUNT', '1')[1]
    if not entry then
      return '0'
    end
    look(entry[1], entry[2])
    for n = 2, #entry[2], 2 do
      bytes = bytes - #entry[2][n]
    end
    first, left = '(' .. entry[1], left - 1
  end
  return first
end

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
