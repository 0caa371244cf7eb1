#!lua flags=allow-oom
--[[
  Lay branches of a large fan-out beside their job; the commit that opens it takes them over.

  KEYS  job
  ARGV  nonce of that commit, '1' to begin anew or '', lifetime (s) if no commit comes,
        then for each: task id, Branch, and the ten arguments of commit's effect `offer` behind it
  Returns  how many are laid
]]
local branches, offers = KEYS[1] .. ':br:' .. ARGV[1], KEYS[1] .. ':st:' .. ARGV[1]
if ARGV[2] == '1' then
  redis.call('DEL', branches, offers)
end
for i = 4, #ARGV, 12 do
  if redis.call('HSET', branches, ARGV[i], ARGV[i + 1]) == 1 then  -- else this call is a repeat
    redis.call('RPUSH', offers, cmsgpack.pack({ARGV[i], unpack(ARGV, i + 2, i + 9)}))
  end
end
redis.call('EXPIRE', branches, ARGV[3])
redis.call('EXPIRE', offers, ARGV[3])
return redis.call('HLEN', branches)
