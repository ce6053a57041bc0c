-- For wrk: every request is made by the next customer.
--
--   [COUNT=1] [KEYS=1] [BODY=JSON] wrk … -s customers.lua URL -- METHOD PATH TOKENS THREADS
--
-- TOKENS is a file with one bearer token per line. Each thread has the lines of its own, so no two threads act for the
-- same customer, and all requests are built before the first is sent: the load generator shares the machine with the
-- server. COUNT counts the answers by status, which makes wrk parse every answer; without it wrk still tells successes
-- from refusals. KEYS gives every request an Idempotency-Key of its own. BODY is every
-- request's body.
--
-- The last line of the output is that of report.lua.

local report = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "report.lua")
local count, keys, body = os.getenv("COUNT"), os.getenv("KEYS"), os.getenv("BODY") or ""
local threads = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

local requests, customer = {}, 0
local key, sent

function init(args)
  local method, path, tokens, of = args[1], args[2], args[3], tonumber(args[4])
  local head = method .. " " .. path .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port .. "\r\n"
  if method == "POST" then head = head .. "Content-Length: " .. #body .. "\r\n" end
  if #body > 0 then head = head .. "Content-Type: application/json\r\n" end
  local tail = keys and "\r\nIdempotency-Key: " or "\r\n\r\n" .. body

  local line_number = 0
  for token in io.lines(tokens) do
    if line_number % of == number then
      requests[#requests + 1] = head .. "Authorization: Bearer " .. token .. tail
    end
    line_number = line_number + 1
  end
  key, sent = "bench-" .. os.time() .. "-" .. number .. "-", 0
end

function request()
  customer = customer < #requests and customer + 1 or 1
  if not keys then return requests[customer] end
  sent = sent + 1
  return requests[customer] .. key .. sent .. "\r\n\r\n" .. body
end

statuses = {}
if count then
  function response(status)
    statuses[status] = (statuses[status] or 0) + 1
  end
end

function done(summary, latency)
  local all = {}
  for _, thread in ipairs(threads) do
    for status, n in pairs(thread:get("statuses")) do
      all[status] = (all[status] or 0) + n
    end
  end
  report(summary, latency, all)
end
