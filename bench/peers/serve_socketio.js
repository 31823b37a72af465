// Socket.IO on Node with ioredis: the whole work of a heartbeat as the gateway's contract has it. It verifies the token,
// sends config, limits the rate, takes the fields it knows with the types they must have and counts the others, writes the
// device's state to Redis (pipelined by ioredis itself), keeps the contract's figures with prom-client, and acks. One
// process, as one worker of the gateway.
//
//   DEVICE_JWT_SECRET=... REDIS_URL=redis://... node serve_socketio.js FOLDER
//
// FOLDER/node_modules holds socket.io, ioredis and prom-client. REDIS_URL may be unix:///path.
"use strict";

const crypto = require("crypto");
const http = require("http");
const path = require("path");

const modules = path.resolve(process.argv[2], "node_modules");
const { Server } = require(path.join(modules, "socket.io"));
const { Redis } = require(path.join(modules, "ioredis"));
const { Counter, Gauge, Histogram, collectDefaultMetrics } = require(path.join(modules, "prom-client"));

const secret = process.env.DEVICE_JWT_SECRET;
const redis = new Redis(process.env.REDIS_URL.replace(/^unix:\/\//, ""), { enableAutoPipelining: true });
const RATE = Number(process.env.MESSAGES_PER_MINUTE || 1e9);
const TTL = 60;

const buckets = [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1,
  0.25, 0.5, 1, 2.5, 5];
const help = "-";
const place = ["device_id", "organization_id"];
const messages = new Counter({ name: "ws_messages_total", help, labelNames: ["type", "result"] });
const duration = new Histogram({ name: "ws_message_duration_seconds", help, labelNames: ["type"], buckets });
const ignored = new Counter({ name: "ws_fields_ignored_total", help, labelNames: ["type", "why"] });
const bytes = new Counter({ name: "ws_bytes_total", help, labelNames: ["direction"] });
const active = new Gauge({ name: "ws_connections_active", help, labelNames: ["organization_id", "kind"] });
const heartbeats = new Counter({ name: "heartbeat_total", help, labelNames: ["device_id", "success"] });
const heartbeatDuration = new Histogram({ name: "heartbeat_duration_seconds", help, buckets });
const operations = new Counter({ name: "redis_operations_total", help, labelNames: ["operation", "result"] });
const redisDuration = new Histogram({ name: "redis_operation_duration_seconds", help, labelNames: ["operation"], buckets });
const online = new Gauge({ name: "device_status", help, labelNames: place });
const cpu = new Gauge({ name: "device_cpu_usage", help, labelNames: place });
const memory = new Gauge({ name: "device_memory_usage", help, labelNames: place });
collectDefaultMetrics();

function verify(token) {
  const [header, payload, signature] = String(token).split(".");
  const wanted = crypto.createHmac("sha256", secret).update(`${header}.${payload}`).digest("base64url");
  if (signature === undefined || signature.length !== wanted.length ||
      !crypto.timingSafeEqual(Buffer.from(signature), Buffer.from(wanted))) {
    return null;
  }
  const claims = JSON.parse(Buffer.from(payload, "base64url"));
  return claims.exp > Date.now() / 1000 && claims.type === "device" ? claims : null;
}

const number = (least, most) => (value) => typeof value === "number" && value >= least && value <= most;
const text = (most) => (value) => typeof value === "string" && value.length <= most;
const percent = number(0, 100);
const positive = number(0, Infinity);
const METRICS = { cpuUsage: percent, memoryUsage: percent, diskUsage: positive, networkLatency: positive,
  temperature: number(-Infinity, Infinity) };
const CONTENT = { contentId: text(128), playlistId: text(128), status: text(32), playbackPosition: positive };
const HEARTBEAT = { metrics: METRICS, currentContent: CONTENT, uptime: positive, appVersion: text(64),
  screenState: text(32), playbackSource: text(32), contentVersion: text(64) };

// What is known and of the right type; what is not is counted, and no reason to lose a heartbeat.
function take(schema, data) {
  const taken = {};
  for (const name of Object.keys(data)) {
    const rule = schema[name];
    const value = data[name];
    if (rule === undefined) {
      ignored.inc({ type: "heartbeat", why: "unknown" });
    } else if (value === null) {
      continue;
    } else if (typeof rule === "function" ? rule(value) : typeof value === "object") {
      taken[name] = typeof rule === "function" ? value : take(rule, value);
    } else if (rule === CONTENT && CONTENT.contentId(value)) {
      taken[name] = { contentId: value };
    } else {
      ignored.inc({ type: "heartbeat", why: "wrong_type" });
    }
  }
  return taken;
}

function store(device, status) {
  const started = process.hrtime.bigint();
  const done = (result) => () => {
    operations.inc({ operation: "setex", result });
    redisDuration.observe({ operation: "setex" }, Number(process.hrtime.bigint() - started) / 1e9);
  };
  redis.setex(`device:status:${device}`, TTL, JSON.stringify(status)).then(done("ok"), done("error"));
}

const server = http.createServer();
const io = new Server(server, { transports: ["websocket"], perMessageDeflate: false });

io.use((socket, next) => {
  const claims = verify(socket.handshake.auth.token);
  if (claims === null) {
    next(Object.assign(new Error("auth_invalid"), { data: { code: "AUTH_INVALID" } }));
    return;
  }
  socket.data = { device: claims.sub, organization: claims.organizationId };
  next();
});

io.on("connection", (socket) => {
  const { device, organization } = socket.data;
  const kind = { organization_id: organization, kind: "device" };
  const labels = { device_id: device, organization_id: organization };
  let budget = 2 * RATE;
  let refilled = Date.now();
  active.inc(kind);
  socket.on("disconnect", () => active.dec(kind));
  socket.conn.on("packet", ({ data }) => bytes.inc({ direction: "in" }, data === undefined ? 1 : data.length));
  socket.conn.on("packetCreate", ({ data }) => bytes.inc({ direction: "out" }, data === undefined ? 1 : data.length));
  socket.emit("config", { heartbeatInterval: 15000, serverTime: Date.now() });
  socket.on("heartbeat", (data, ack) => {
    const started = process.hrtime.bigint();
    const now = Date.now();
    const timestamp = new Date(now).toISOString();
    budget = Math.min(2 * RATE, budget + ((now - refilled) * RATE) / 60000);
    refilled = now;
    if (budget < 1 || typeof data !== "object" || data === null) {
      messages.inc({ type: "heartbeat", result: "refused" });
      heartbeats.inc({ device_id: device, success: "false" });
      ack({ success: false, code: budget < 1 ? "RATE_LIMITED" : "INVALID_PAYLOAD", timestamp });
      return;
    }
    budget -= 1;
    const beat = take(HEARTBEAT, data);
    store(device, { status: "online", organizationId: organization, lastHeartbeat: now, ...beat });
    ack({ success: true, data: { reconcileContent: false, nextHeartbeatIn: 15000, commands: [] }, timestamp });
    const seconds = Number(process.hrtime.bigint() - started) / 1e9;
    messages.inc({ type: "heartbeat", result: "ok" });
    duration.observe({ type: "heartbeat" }, seconds);
    heartbeats.inc({ device_id: device, success: "true" });
    heartbeatDuration.observe(seconds);
    online.set(labels, 1);
    const { cpuUsage, memoryUsage } = beat.metrics || {};
    if (cpuUsage !== undefined) {
      cpu.set(labels, cpuUsage);
    }
    if (memoryUsage !== undefined) {
      memory.set(labels, memoryUsage);
    }
  });
});

server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => console.log("listening", server.address().port));
process.stdin.resume().on("end", () => process.exit(0));
