import type { ServerResponse } from "node:http";
import type { HttpBindings } from "@hono/node-server";
import { type Context, Hono } from "hono";
import { FleetError, quote } from "../errors.js";
import { permit } from "../identity/policy.js";
import { deadline } from "../runtime/deadline.js";
import { sessionNotFound } from "../sessions/problems.js";
import { refuseTokenIn } from "./auth.js";
import { readBody } from "./body.js";
import { credentialIn } from "./console/credential.js";
import { consoleRoutes } from "./console/routes.js";
import type { DoorState, Work } from "./door-state.js";
import { readInput } from "./input.js";
import { hostsOf } from "./origins.js";
import { fleetErrorOf, HttpError, PROBLEM_TYPE, problemOf } from "./problem.js";
import { type Answer, type AnyRoute, nameOf } from "./route.js";
import { ROUTES } from "./routes/table.js";
import { STREAM_TYPE, writeStream } from "./streams/sse.js";
import { Visit } from "./visit.js";

export type Env = { Bindings: HttpBindings; Variables: { visit: Visit } };
type Request = Context<Env>;

const JSON_TYPE = "application/json";
/** The largest body of a request that has no prompt, in bytes. */
const SMALL_BODY = 64 * 1024;

/**
 * The HTTP API. Each request passes these steps, in this order: the host and the origin; the route; the drain; who makes it;
 * the limits of that user; the policy; the input; the handler.
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
    return respond(door, route, c, answer);
  } catch (error) {
    // When the client disconnects, the adapter aborts with a text as the reason, and Hono handles only errors.
    throw error instanceof Error ? error : new Error(String(error));
  } finally {
    void Promise.all([closed(c.env.outgoing), done]).then(() => work[Symbol.dispose]());
  }
}

/** Resolves once the answer is sent, or once it can no longer be sent. */
async function closed(outgoing: ServerResponse): Promise<void> {
  if (outgoing.destroyed || outgoing.writableFinished) return;
  await new Promise<void>((resolve) => outgoing.once("close", () => resolve()));
}

async function answerTo(door: DoorState, route: AnyRoute, c: Request, work: Work): Promise<Answer<unknown>> {
  const visit = c.get("visit");
  const identity = await visit.signOn(authorizationOf(c), work);
  const share = work.keep(door.shares.admit(identity.user, false));
  const { action, about } = route;
  const id = c.req.param("id") ?? "";
  const relation = about === "session" ? await door.fleet.sessions.relation(identity, id) : "none";
  if (!permit(identity, action, relation, nameOf(route))) throw sessionNotFound(id);
  const maxBytes = route.path.endsWith("/turns") ? door.config.serve.maxFrameBytes : SMALL_BODY;
  const input = readInput(route, {
    params: c.req.param(),
    query: c.req.queries(),
    body: route.body === null ? null : await readBody(c.req.raw, maxBytes, share),
  });
  const lasting = work.keep(deadline(route.limitMs ?? undefined, work.signal));
  const limit = work.keep(deadline(undefined, lasting.signal, c.req.raw.signal));
  return await route.handle({
    fleet: door.fleet,
    identity,
    ...input,
    ifNoneMatch: c.req.header("If-None-Match"),
    lastEventId: c.req.header("Last-Event-ID"),
    acceptsStream: route.answer.stream !== undefined && (c.req.header("Accept") ?? "").includes(STREAM_TYPE),
    // A member's turn runs on the owner's server, which must not get the member's token.
    gitHubToken: relation === "member" ? null : door.gitHubTokenOf(identity),
    limits: { default: door.config.limits.default, connections: door.shares.connectionsOf(identity.user) },
    signal: limit.signal,
    lasting: lasting.signal,
    draining: door.draining,
  });
}

/** The header of a program, or the cookie of the console. */
function authorizationOf({ req, env }: Request): string | undefined {
  const header = (name: string) => req.header(name);
  const token = credentialIn({ header, isSecure: "encrypted" in env.incoming.socket })?.token;
  return header("Authorization") ?? (token === undefined ? undefined : `Bearer ${token}`);
}

function respond(door: DoorState, { answer }: AnyRoute, c: Request, given: Answer<unknown>): Response {
  const { status, headers = {}, body, stream } = given;
  if (stream !== undefined) {
    // Some proxies keep an answer until it is complete, unless this header says otherwise.
    const more = { ...headers, "X-Accel-Buffering": "no" };
    return answerWith(c, answer.status, STREAM_TYPE, writeStream(withProblem(stream, c), door.clock), more);
  }
  if (body === undefined) return empty(c, status ?? 204, headers);
  return answerWith(c, answer.status, JSON_TYPE, JSON.stringify(body), headers);
}

/** Ends a stream that fails with an event that has the error. */
async function* withProblem(stream: NonNullable<Answer<unknown>["stream"]>, c: Request) {
  try {
    yield* stream;
  } catch (error) {
    if (c.req.raw.signal.aborted) return;
    const visit = c.get("visit");
    const { status, body } = problemOf(error, visit.id);
    visit.failed(fleetErrorOf(error), status, error);
    yield { event: "problem", data: body };
  }
}

async function serveProbe(door: DoorState, path: string, c: Request): Promise<Response> {
  const found = await door.probes.answer(path);
  if (found === null) throw unknownMethod(c);
  return answerWith(c, found.status, found.type, found.body);
}

function problem(c: Request, error: unknown): Response {
  const visit = c.get("visit");
  const { status, headers, body } = problemOf(error, visit.id);
  // The error of a request whose client has gone only reports that the work was given up.
  if (c.req.raw.signal.aborted) visit.abandoned();
  else visit.failed(fleetErrorOf(error), status, error);
  return answerWith(c, status, PROBLEM_TYPE, JSON.stringify(body), headers);
}

function answerWith(
  c: Request,
  status: number,
  type: string,
  body: string | ReadableStream,
  headers: Answer<unknown>["headers"] = {},
): Response {
  const visit = c.get("visit");
  visit.ended(status);
  return new Response(body, { status, headers: { ...visit.headers, ...headers, "Content-Type": type } });
}

function empty(c: Request, status: 204 | 304, headers: Answer<unknown>["headers"]): Response {
  const visit = c.get("visit");
  visit.ended(status);
  return new Response(null, { status, headers: { ...visit.headers, ...headers } });
}

function unknownMethod(c: Request): FleetError {
  const message = `There is no ${quote(`${c.req.method} ${c.req.path}`)} here.`;
  return new FleetError("FLEET_METHOD_UNKNOWN", message, { suggestions: ["GET /openapi.json lists all routes."] });
}
