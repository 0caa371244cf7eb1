--[[
  Shared: entries that cannot be handled. Included by `--@include dead`, behind claims.

  dead  stream, the newest 1000: stream=where it was, reason; if a job was quarantined with it: fence=its
        fence since then, claimed='1' if it was the claim, deadline=when its time is over (ms) or '',
        and fields of the job as they were before;
        then a field '' and behind it the entry as it was
]]
local function set_aside(p, stream, entry, reason, before)
  local read = redis.call('XRANGE', stream, entry, entry)
  if #read > 0 then
    local kept = {'stream', stream, 'reason', reason}
    for _, word in ipairs(before) do
      kept[#kept + 1] = word
    end
    kept[#kept + 1] = ''
    kept[#kept + 1] = ''
    for _, word in ipairs(read[1][2]) do
      kept[#kept + 1] = word
    end
    redis.call('XADD', p .. 'dead', 'MAXLEN', '1000', '*', unpack(kept))
  end
  answer(stream, entry)
end
