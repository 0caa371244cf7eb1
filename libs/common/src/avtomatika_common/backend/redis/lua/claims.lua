--[[ Shared: is an inbox entry still pending for this consumer? Included by `--@include claims`. ]]
local function is_mine(stream, consumer, entry)
  local pending = redis.pcall('XPENDING', stream, 'g', entry, entry, '1')
  return not pending.err and #pending > 0 and pending[1][2] == consumer
end

local function answer(stream, entry)
  redis.call('XACK', stream, 'g', entry)
  redis.call('XDEL', stream, entry)
end
