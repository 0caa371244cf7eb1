"""The ports on Redis 7 and its kin: Lua for what must be atomic, streams for what is waited for."""
