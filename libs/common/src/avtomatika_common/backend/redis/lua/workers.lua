--[[
  Shared by the scripts that move workers. Included where a script says `--@include workers`.

  Layout of the workers' slot (`w` is its key prefix):
    w:<id>          hash   inc, nonce of the call that registered it, max tasks at once ('' = no limit),
                           draining ('1' or '0'); d:<key> one per key of its document, packed;
                           t:<type> when it last got a task of this type (ms)
    exp             zset   worker -> end of its registration (ms)
    cred:<id>       zset   `<poll>|<gateway>` -> until (ms)
    hold:<id>       zset   task it holds or was promised -> until (ms; +inf once the lease is known here)
    offer:<id>      hash   task of a hold -> its offer number
    cancel:<id>     zset   tasks it should stop -> since (ms)
    inc             int    numbers the registrations of all workers, so that none comes twice
    gone            stream registrations that ended: w=worker, i=incarnation, l=lost ('1' or '0')
    mail:<gateway>  stream matches: p=poll, w=worker, i=incarnation, t=task, j=job, o=offer number
    hint            stream wake-ups: k=worker, v=id
    alive:<name>    string liveness of an instance
]]
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function hint(w, worker)
  redis.call('XADD', w .. 'hint', 'MAXLEN', '~', '1000', '*', 'k', 'worker', 'v', worker)
end

local function is_live(w, worker, now)
  local expiry = redis.call('ZSCORE', w .. 'exp', worker)
  return expiry and tonumber(expiry) > now
end

-- Open polls at gateways that are alive, the latest first. `alive` remembers what was looked up.
local function credits(w, worker, now, alive)
  local open = redis.call('ZRANGE', w .. 'cred:' .. worker, '+inf', '(' .. now, 'BYSCORE', 'REV',
    'LIMIT', '0', '512')
  local found = {}
  for _, member in ipairs(open) do
    local poll, gateway = string.match(member, '^([^|]*)|(.*)$')
    if alive[gateway] == nil then
      alive[gateway] = redis.call('EXISTS', w .. 'alive:' .. gateway) == 1
    end
    if alive[gateway] then
      found[#found + 1] = {member = member, poll = poll, gateway = gateway}
    end
  end
  return found
end

-- Promises that were not kept in time are forgotten.
local function forget_old_holds(w, worker, now)
  local hold = w .. 'hold:' .. worker
  local old = redis.call('ZRANGE', hold, '-inf', now, 'BYSCORE', 'LIMIT', '0', '512')
  for _, task in ipairs(old) do
    redis.call('ZREM', hold, task)
    redis.call('HDEL', w .. 'offer:' .. worker, task)
  end
end

-- The registration is over, whatever came after it; its leases are returned by who reads `gone`.
local function end_registration(w, worker, lost)
  local incarnation = redis.call('HGET', w .. 'w:' .. worker, 'inc')
  if incarnation then
    redis.call('XADD', w .. 'gone', '*', 'w', worker, 'i', incarnation, 'l', lost and '1' or '0')
  end
  redis.call('DEL', w .. 'w:' .. worker, w .. 'cred:' .. worker, w .. 'hold:' .. worker,
    w .. 'offer:' .. worker, w .. 'cancel:' .. worker)
  redis.call('ZREM', w .. 'exp', worker)
  hint(w, worker)
end
