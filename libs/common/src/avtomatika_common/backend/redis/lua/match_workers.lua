#!lua flags=allow-oom
--@include workers
--[[
  Promise tasks to workers, in order: each takes a free place; the first of a worker takes its latest
  open poll, which is used up, and as many as that has room for go to the gateway together.

  KEYS  exp
  ARGV  w, how long a promise holds (ms), '1' if others match too and must be told, else '', then
        fives: worker, task, job, offer number, task type
  Returns  {{answer, ...}, {worker, places...}, ...}: an answer is 'MATCHED' (also when this offer is
           promised to it already), 'GONE', 'NO_CREDIT' or 'FULL'; places as in `workers.lua`
]]
local w, until_ms, now, alive = ARGV[1], nil, now_ms(), {}
until_ms = now + tonumber(ARGV[2])
local known, order, mails, answers = {}, {}, {}, {}

local function read(worker)
  local stored = redis.call('HMGET', w .. 'w:' .. worker, 'inc', 'max', 'draining')
  if not stored[1] or stored[3] == '1' or not is_live(w, worker, now) then
    return false
  end
  forget_old_holds(w, worker, now)
  order[#order + 1] = worker
  return {inc = stored[1], max = tonumber(stored[2]) or math.huge, left = 0,
    credits = credits(w, worker, now, alive), next = 1,
    held = redis.call('ZCARD', w .. 'hold:' .. worker)}
end

local function promise(worker, s, task, job, offer, type)
  local hold, offers = w .. 'hold:' .. worker, w .. 'offer:' .. worker
  local promised = redis.call('HGET', offers, task)
  if promised and tonumber(promised) >= tonumber(offer) then
    return 'MATCHED'
  end
  local credit = s.credits[s.next]
  if s.left == 0 and not credit then
    return 'NO_CREDIT'
  end
  if s.held - (promised and 1 or 0) >= s.max then
    return 'FULL'
  end
  if s.left == 0 then
    redis.call('ZREM', w .. 'cred:' .. worker, credit.member)
    s.next, s.left = s.next + 1, credit.room
    s.promises = {}
    mails[#mails + 1] = {gateway = credit.gateway, poll = credit.poll, worker = worker,
      inc = s.inc, promises = s.promises}
  end
  s.left = s.left - 1
  if not promised then
    s.held = s.held + 1
  end
  redis.call('ZADD', hold, until_ms, task)
  redis.call('HSET', offers, task, offer)
  redis.call('HSET', w .. 'w:' .. worker, 't:' .. type, now)
  s.turns = s.turns or {}
  s.turns[type] = now
  s.promises[#s.promises + 1] = {task, job, tonumber(offer)}
  return 'MATCHED'
end

for n = 4, #ARGV, 5 do
  local worker = ARGV[n]
  if known[worker] == nil then
    known[worker] = read(worker)
  end
  answers[#answers + 1] = known[worker]
    and promise(worker, known[worker], ARGV[n + 1], ARGV[n + 2], ARGV[n + 3], ARGV[n + 4]) or 'GONE'
end
for _, m in ipairs(mails) do
  mail(w, m.gateway, 'k', 'match', 'p', m.poll, 'w', m.worker, 'i', m.inc,
    'u', until_ms, 't', cmsgpack.pack(m.promises))
end
local found = {answers}
for _, worker in ipairs(order) do
  local s = known[worker]
  local room = 0
  for n = s.next, #s.credits do
    room = room + s.credits[n].room
  end
  local stamp = redis.call('HINCRBY', w .. 'w:' .. worker, 'stamp', 1)
  found[#found + 1] = {worker, s.inc, room, s.held, stamp}
  if ARGV[3] == '1' and s.turns then
    redis.call('XADD', w .. 'hint', 'MAXLEN', '~', '1000', '*', 'k', 'worker', 'v', worker,
      'p', s.inc .. ':' .. room .. ':' .. s.held .. ':' .. stamp, 't', cmsgpack.pack(s.turns))
  end
end
return found
