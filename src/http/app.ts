import type { ServerResponse } from "node:http";
import type { HttpBindings } from "@hono/node-server";
import { RESPONSE_ALREADY_SENT } from "@hono/node-server/utils/response";
import { type Context, Hono } from "hono";
import { deadline } from "../base/clock.js";
import { FleetError, quote } from "../base/errors.js";
import { permit } from "../identity/identity.js";
import { actingFor } from "../identity/sign-on.js";
import { sessionNotFound } from "../sessions/problems.js";
import { consoleRoutes, credentialIn } from "./console.js";
import { type DoorState, hostsOf, refuseTokenIn, type Work } from "./door-state.js";
import { idempotencyKeyIn, readBody, readInput } from "./input.js";
import { fleetErrorOf, HttpError, PROBLEM_TYPE, problemOf } from "./problem.js";
import { type Answer, type AnyRoute, nameOf } from "./route.js";
import { ADMIN_ROUTES } from "./routes/admin.js";
import { EVENT_ROUTES } from "./routes/events.js";
import { REQUEST_ROUTES } from "./routes/requests.js";
import { SESSION_ROUTES } from "./routes/sessions.js";
import { TURN_ROUTES } from "./routes/turns.js";
import { USAGE_ROUTES } from "./routes/usage.js";
import { CALLER_ROUTES, LIMIT_ROUTES, USER_ROUTES } from "./routes/users.js";
import { type EventStream, isTooSlow, STREAM_TYPE, type StreamEvent, writeStream } from "./sse.js";
import { Visit } from "./visit.js";

export type Env = { Bindings: HttpBindings; Variables: { visit: Visit } };
type Request = Context<Env>;
type Headers = NonNullable<Answer<unknown>["headers"]>;

const JSON_TYPE = "application/json";
/** The largest body of a request that has no prompt, in bytes. */
const SMALL_BODY = 64 * 1024;

/**
 * Creates the HTTP API. Each request passes these steps, in this order: check of host and origin; refusal of a token in
 * the URL; choice of the route; refusal of new work during a drain; sign-on; limits of the user; policy; check of the
 * input; handler.
 */
export function createApp(door: DoorState): Hono<Env> {
  const app = new Hono<Env>();
  app.use(async (c, next) => {
    const { incoming } = c.env;
    const visit = new Visit(door, incoming, c.req.header("X-Request-Id"));
    c.set("visit", visit);
    Object.assign(visit.headers, door.origins.check({ hosts: hostsOf(incoming), origin: c.req.header("Origin") }));
    refuseTokenIn(incoming.url ?? "");
    await next();
  });
  for (const path of new Set(ROUTES.map((route) => route.path))) {
    const routes = ROUTES.filter((route) => route.path === path);
    const allowed = routes.map(({ method }) => method);
    const pattern = path.replace(/\{(\w+)\}/g, ":$1");
    for (const route of routes) app.on(route.method, pattern, async (c) => await serveRoute(door, route, c));
    app.options(pattern, (c) => empty(c, 204, { Allow: allowed.join(", "), ...door.origins.preflight(allowed) }));
    app.all(pattern, (c) => {
      throw new HttpError(unknownMethod(c), 405, { Allow: allowed.join(", ") });
    });
  }
  app.get("/openapi.json", async (c) => answerWith(c, 200, JSON_TYPE, await door.document()));
  for (const path of ["/healthz", "/readyz", "/metrics"]) app.get(path, async (c) => await serveProbe(door, path, c));
  app.route("/", consoleRoutes(door));
  app.notFound((c) => problem(c, unknownMethod(c)));
  app.onError((error, c) => problem(c, error));
  return app;
}

async function serveRoute(door: DoorState, route: AnyRoute, c: Request): Promise<Response> {
  const visit = c.get("visit");
  visit.route = nameOf(route);
  if (route.isWork && door.isDraining) throw door.refusal();
  const work = door.begin();
  let done: Promise<void> | undefined;
  try {
    const answer = await answerTo(door, route, c, work);
    done = answer.done;
    if (answer.stream !== undefined && !route.isWork) door.endWithDrain(work);
    return respond(door, route, c, work, answer);
  } finally {
    onceClosed(c.env.outgoing, () => void Promise.resolve(done).then(() => work[Symbol.dispose]()));
  }
}

/** Calls `action` once the answer is sent, or once it can no longer be sent. */
function onceClosed(outgoing: ServerResponse, action: () => void): void {
  if (outgoing.destroyed || outgoing.writableFinished) action();
  else outgoing.on("close", action); // `once` would cost more memory
}

async function answerTo(door: DoorState, route: AnyRoute, c: Request, work: Work): Promise<Answer<unknown>> {
  const visit = c.get("visit");
  const identity = await visit.signOn(authorizationOf(c), work);
  const here = { relayed: false, everywhere: false };
  const admitted = actingFor(identity, "http", async () => await door.shares.admitUser(identity.user, here));
  const share = work.keep(await admitted);
  work.share = share;
  const { action, about } = route;
  const id = c.req.param("id") ?? "";
  const relation = about === "session" ? await door.fleet.relation(identity, id) : "none";
  if (!permit(identity, action, relation, nameOf(route))) throw sessionNotFound(id);
  const maxBytes = route.path.endsWith("/turns") ? door.config.serve.maxFrameBytes : SMALL_BODY;
  const input = readInput(route, {
    params: c.req.param(),
    query: c.req.queries(),
    body: route.body === null ? null : await readBody(c, maxBytes, share),
  });
  const asked = route.actionOf?.(input.query, identity) ?? action;
  if (asked !== action && !permit(identity, asked, relation, nameOf(route))) throw sessionNotFound(id);
  const { outgoing } = c.env;
  const lasting = route.limitMs === null ? work.signal : work.keep(deadline(route.limitMs, work.signal)).signal;
  const given = {
    fleet: door.fleet,
    identity,
    ...input,
    ifMatch: c.req.header("If-Match"),
    ifNoneMatch: c.req.header("If-None-Match"),
    lastEventId: c.req.header("Last-Event-ID"),
    idempotencyKey: route.isRepeatable === true ? idempotencyKeyIn(c.req.header("Idempotency-Key")) : undefined,
    acceptsStream: route.answer.stream !== undefined && (c.req.header("Accept") ?? "").includes(STREAM_TYPE),
    // A member's turn runs on the owner's server, which must not get the member's token.
    gitHubToken: relation === "member" ? null : door.gitHubTokenOf(identity),
    limits: { connections: door.shares.connectionsOf(identity.user) },
    // A request without a time limit streams until its client leaves. Give it the signal of its work instead of another
    // AbortController, because many such streams may be open.
    signal: route.limitMs === null ? work.endingWithClient() : work.keep(new Departure(outgoing, lasting)).signal,
    lasting,
    draining: door.draining,
  };
  return await actingFor(identity, "http", async () => await route.handle(given));
}

/**
 * The credential of a request, in the form of an Authorization header. If the console sent the request, this is the
 * token in the console's cookie; otherwise, it is the request's own Authorization header.
 */
function authorizationOf({ req, env }: Request): string | undefined {
  const header = (name: string) => req.header(name);
  const token = credentialIn({ header, isSecure: "encrypted" in env.incoming.socket })?.token;
  return token === undefined ? header("Authorization") : `Bearer ${token}`;
}

function respond(
  door: DoorState,
  { answer, isWork }: AnyRoute,
  c: Request,
  work: Work,
  given: Answer<unknown>,
): Response {
  const { status, headers = {}, body, stream } = given;
  if (stream !== undefined) return sendStream(door, c, answer.status, stream, headers);
  if (body === undefined) return empty(c, status ?? 204, headers);
  const text = JSON.stringify(body);
  // If the route does work (`isWork`), send its answer even if the user is over the byte limit, because the work is
  // done.
  work.unread(Buffer.byteLength(text), { orRefuse: !isWork });
  return answerWith(c, answer.status, JSON_TYPE, text, headers);
}

/** Writes a stream directly to the Node.js response, without Hono's adapter. */
function sendStream(door: DoorState, c: Request, status: number, stream: EventStream, headers: Headers): Response {
  const { outgoing, incoming } = c.env;
  const visit = c.get("visit");
  visit.ended(status);
  // Without `X-Accel-Buffering`, some proxies would send the answer on only when it is complete.
  const ours = { "Content-Type": STREAM_TYPE, "X-Accel-Buffering": "no" };
  outgoing.writeHead(status, { ...visit.headers, ...headers, ...ours });
  if (incoming.method === "HEAD") outgoing.end();
  else
    void writeStream(outgoing, stream, {
      heartbeats: door.heartbeats,
      problem: (error) => problemIn(door, visit, error),
    });
  return RESPONSE_ALREADY_SENT;
}

/** Reports the failure of a stream, and returns the event `problem`, with which the stream ends. */
function problemIn(door: DoorState, visit: Visit, error: unknown): StreamEvent {
  const { status, body } = problemOf(error, visit.id);
  if (isTooSlow(error)) door.slowClients++;
  visit.failed(fleetErrorOf(error), status, error);
  return { event: "problem", data: body };
}

async function serveProbe(door: DoorState, path: string, c: Request): Promise<Response> {
  const found = await door.probes.answer(path);
  if (found === null) throw unknownMethod(c);
  return answerWith(c, found.status, found.type, found.body);
}

function problem(c: Request, error: unknown): Response {
  const visit = c.get("visit");
  const { status, headers, body } = problemOf(error, visit.id);
  // If the client has disconnected, the error only shows that the work was abandoned, so do not report it as a failure.
  if (c.req.raw.signal.aborted) visit.abandoned();
  else visit.failed(fleetErrorOf(error), status, error);
  return answerWith(c, status, PROBLEM_TYPE, JSON.stringify(body), headers);
}

function answerWith(c: Request, status: number, type: string, body: string, headers: Headers = {}): Response {
  const visit = c.get("visit");
  visit.ended(status);
  return new Response(body, { status, headers: { ...visit.headers, ...headers, "Content-Type": type } });
}

function empty(c: Request, status: 204 | 304, headers: Headers): Response {
  const visit = c.get("visit");
  visit.ended(status);
  return new Response(null, { status, headers: { ...visit.headers, ...headers } });
}

function unknownMethod(c: Request): FleetError {
  const message = `There is no ${quote(`${c.req.method} ${c.req.path}`)} here.`;
  return new FleetError("FLEET_METHOD_UNKNOWN", message, { suggestions: ["GET /openapi.json lists all routes."] });
}

/**
 * Provides a signal that aborts when the client disconnects before it has received the complete answer, or when the
 * signal `other` aborts. Dispose the object to remove its listeners.
 */
class Departure implements Disposable {
  readonly #gone = new AbortController();
  readonly #response: ServerResponse;
  readonly #other: AbortSignal;

  constructor(response: ServerResponse, other: AbortSignal) {
    this.#response = response;
    this.#other = other;
    response.once("close", this.#onClose);
    other.addEventListener("abort", this.#onAbort, { once: true });
    if (other.aborted) this.#onAbort();
    if (response.destroyed) this.#onClose();
  }

  get signal(): AbortSignal {
    return this.#gone.signal;
  }

  [Symbol.dispose](): void {
    this.#response.off("close", this.#onClose);
    this.#other.removeEventListener("abort", this.#onAbort);
  }

  readonly #onAbort = () => this.#gone.abort(this.#other.reason);
  readonly #onClose = () => {
    if (!this.#response.writableFinished) this.#gone.abort(new Error("The client has gone."));
  };
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
