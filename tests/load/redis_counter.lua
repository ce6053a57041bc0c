-- What a user would write: takes one unit of KEYS[1] while there is one. Nothing says who got it.
local n = tonumber(redis.call('GET', KEYS[1]))
if n and n > 0 then
  return redis.call('DECR', KEYS[1])
end
return -1
