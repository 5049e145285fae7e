import type { HttpBindings } from "@hono/node-server";
import { RESPONSE_ALREADY_SENT } from "@hono/node-server/utils/response";
import { Hono } from "hono";
import { deadline } from "../base/clock.js";
import { FleetError, quote } from "../base/errors.js";
import { type Action, permit } from "../identity/identity.js";
import { actingFor } from "../identity/sign-on.js";
import { sessionNotFound } from "../sessions/problems.js";
import { consoleRoutes, credentialIn } from "./console.js";
import { type DoorState, hostsOf, refuseDotsIn, refuseTokenIn } from "./door-state.js";
import { idempotencyKeyIn, readBody, readInput } from "./input.js";
import { fleetErrorOf, HttpError, PROBLEM_TYPE, problemOf } from "./problem.js";
import { type AnyRoute, Reply } from "./route.js";
import { ADMIN_ROUTES } from "./routes/admin.js";
import { EVENT_ROUTES } from "./routes/events.js";
import { REQUEST_ROUTES } from "./routes/requests.js";
import { SESSION_ROUTES } from "./routes/sessions.js";
import { TURN_ROUTES } from "./routes/turns.js";
import { USAGE_ROUTES } from "./routes/usage.js";
import { CALLER_ROUTES, LIMIT_ROUTES, USER_ROUTES } from "./routes/users.js";
import { type EventStream, isTooSlow, STREAM_TYPE, type StreamEvent, writeStream } from "./sse.js";
import { type Env, JSON_TYPE, type Request, reply, Visit } from "./visit.js";

/** The largest body of a request that has no prompt, in bytes. */
const SMALL_BODY = 64 * 1024;

/**
 * Creates the HTTP API. Each request passes these steps, in this order: check of host and origin; check of the URL;
 * choice of the route; refusal of new work during a drain; sign-on; limits of the user; policy; check of the input;
 * handler.
 */
export function createApp(door: DoorState): Hono<Env> {
  const app = new Hono<Env>();
  app.use(async (c, next) => {
    const { incoming } = c.env;
    const visit = new Visit(door, c.env, c.req.header("X-Request-Id"));
    c.set("visit", visit);
    Object.assign(visit.headers, door.origins.check({ hosts: hostsOf(incoming), origin: c.req.header("Origin") }));
    refuseTokenIn(incoming.url ?? "");
    refuseDotsIn(incoming.url ?? "");
    await next();
  });
  for (const path of new Set(ROUTES.map((route) => route.path))) {
    const routes = ROUTES.filter((route) => route.path === path);
    const allowed = routes.map(({ method }) => method);
    const pattern = path.replace(/\{(\w+)\}/g, ":$1");
    for (const route of routes) app.on(route.method, pattern, async (c) => await serveRoute(door, route, c));
    app.options(pattern, (c) => reply(c, 204, { Allow: allowed.join(", "), ...door.origins.preflight(allowed) }));
    app.all(pattern, (c) => {
      throw new HttpError(unknownMethod(c), 405, { Allow: allowed.join(", ") });
    });
  }
  app.get("/openapi.json", async (c) => reply(c, 200, JSON_TYPE, await door.document()));
  for (const path of ["/healthz", "/readyz", "/metrics"]) {
    app.get(path, async (c) => {
      const found = await door.probes.answer(path);
      if (found === null) throw unknownMethod(c);
      return reply(c, found.status, { "Content-Type": found.type }, found.body);
    });
  }
  app.route("/", consoleRoutes(door));
  app.notFound((c) => problem(c, unknownMethod(c)));
  app.onError((error, c) => problem(c, error));
  return app;
}

async function serveRoute(door: DoorState, route: AnyRoute, c: Request): Promise<Response> {
  const visit = c.get("visit");
  visit.route = route.name;
  if (route.isWork && door.isDraining) throw door.refusal();
  visit.begin();
  let done: Promise<void> | undefined;
  try {
    const given = await answerTo(door, route, c);
    const answer = given instanceof Reply ? given.fields : { body: given };
    done = answer.done;
    visit.endsWithDrain = answer.stream !== undefined && !route.isWork;
    if (visit.endsWithDrain && door.isDraining) visit.cut(door.refusal());
    return respond(door, route, c, answer);
  } finally {
    onceClosed(c.env.outgoing, () => void Promise.resolve(done).then(() => visit[Symbol.dispose]()));
  }
}

/** Calls `action` once the answer is sent, or once it can no longer be sent. */
function onceClosed(outgoing: HttpBindings["outgoing"], action: () => void): void {
  if (outgoing.destroyed || outgoing.writableFinished) action();
  else outgoing.on("close", action); // `once` would cost more memory
}

async function answerTo(door: DoorState, route: AnyRoute, c: Request): Promise<unknown> {
  const visit = c.get("visit");
  const identity = await visit.signOn(authorizationOf(c));
  const here = { relayed: false, everywhere: false };
  const admitted = actingFor(identity, "http", async () => await door.shares.admitUser(identity.user, here));
  const share = visit.keep(await admitted);
  visit.share = share;
  const id = c.req.param("id") ?? "";
  const relation = route.about === "session" ? await door.fleet.relation(identity, id) : "none";
  const check = (action: Action) => {
    if (!permit(identity, action, relation, route.name)) throw sessionNotFound(id);
  };
  check(route.action);
  const maxBytes = route.path.endsWith("/turns") ? door.config.serve.maxFrameBytes : SMALL_BODY;
  const input = readInput(route, {
    params: c.req.param(),
    query: c.req.queries(),
    body: route.body === null ? null : await readBody(c, maxBytes, share),
  });
  check(route.actionOf?.(input.query, identity) ?? route.action);
  const lasting = route.limitMs === null ? visit.signal : visit.keep(deadline(route.limitMs, visit.signal)).signal;
  const given = {
    fleet: door.fleet,
    identity,
    ...input,
    header: (name: string) => c.req.header(name),
    idempotencyKey: route.isRepeatable === true ? idempotencyKeyIn(c.req.header("Idempotency-Key")) : undefined,
    acceptsStream: route.answer.stream !== undefined && (c.req.header("Accept") ?? "").includes(STREAM_TYPE),
    // A member's turn runs on the owner's server, which must not get the member's token.
    gitHubToken: relation === "member" ? null : door.gitHubTokenOf(identity),
    limits: { connections: door.shares.connectionsOf(identity.user) },
    signal: visit.untilClientLeaves(lasting),
    lasting,
    draining: door.draining,
  };
  return await actingFor(identity, "http", async () => await route.handle(given));
}

/**
 * The credential of a request, in the form of an Authorization header. If the console sent the request, this is the
 * token in the console's cookie; otherwise, it is the request's own Authorization header.
 */
function authorizationOf(c: Request): string | undefined {
  const token = credentialIn(c)?.token;
  return token === undefined ? c.req.header("Authorization") : `Bearer ${token}`;
}

function respond(door: DoorState, route: AnyRoute, c: Request, answer: Reply["fields"]): Response {
  const { status = route.answer.status ?? 200, headers = {}, body, stream } = answer;
  if (stream !== undefined) return sendStream(door, c, status, stream);
  if (body === undefined) return reply(c, status, headers);
  const text = JSON.stringify(body);
  // If the route does work (`isWork`), send its answer even if the user is over the byte limit, because the work is
  // done.
  c.get("visit").unread(Buffer.byteLength(text), { orRefuse: !route.isWork });
  return reply(c, status, { ...headers, ...JSON_TYPE }, text);
}

/** Writes a stream directly to the Node.js response, without Hono's adapter. */
function sendStream(door: DoorState, c: Request, status: number, stream: EventStream): Response {
  const { outgoing, incoming } = c.env;
  const visit = c.get("visit");
  visit.ended(status);
  // Without `X-Accel-Buffering`, some proxies would send the answer on only when it is complete.
  outgoing.writeHead(status, { ...visit.headers, "Content-Type": STREAM_TYPE, "X-Accel-Buffering": "no" });
  /** Reports the failure of the stream, and returns its last event. */
  const problem = (error: unknown): StreamEvent => {
    const { status, body } = problemOf(error, visit.id);
    if (isTooSlow(error)) door.streams.slow++;
    visit.failed(fleetErrorOf(error), status, error);
    return { event: "problem", data: body };
  };
  if (incoming.method === "HEAD") outgoing.end();
  else void writeStream(outgoing, stream, { clock: door.clock, counts: door.streams, problem });
  return RESPONSE_ALREADY_SENT;
}

function problem(c: Request, error: unknown): Response {
  const visit = c.get("visit");
  const { status, headers, body } = problemOf(error, visit.id);
  // If the client has disconnected, the error only shows that the work was abandoned, so do not report it as a failure.
  if (c.req.raw.signal.aborted) visit.abandoned();
  else visit.failed(fleetErrorOf(error), status, error);
  return reply(c, status, { ...headers, "Content-Type": PROBLEM_TYPE }, JSON.stringify(body));
}

function unknownMethod(c: Request): FleetError {
  const message = `There is no ${quote(`${c.req.method} ${c.req.path}`)} here.`;
  return new FleetError("FLEET_METHOD_UNKNOWN", message, { suggestions: ["GET /openapi.json lists all routes."] });
}

/** Every route of the HTTP API. The validation, the policy and `/openapi.json` come from this table. */
export const ROUTES: readonly AnyRoute[] = [
  ...CALLER_ROUTES,
  ...SESSION_ROUTES,
  ...TURN_ROUTES,
  ...REQUEST_ROUTES,
  ...EVENT_ROUTES,
  ...ADMIN_ROUTES,
  ...USAGE_ROUTES,
  ...LIMIT_ROUTES,
  ...USER_ROUTES,
];
