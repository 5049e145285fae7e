/**
 * A service on the library. Use the library where your own code takes part in the turns, here by a tool. Programs that only
 * send prompts can use the HTTP API (web/) without any code on the server.
 *
 * POST /api/analyze {prompt}: one answer that leaves no trace. The agent may look up orders.
 * POST /team-chat {message}: one conversation of a team. Each member gets the answer to their own message, even if several
 * write at once, or if several copies of this service run.
 *
 * Run: TEAM=alice,bob npx tsx examples/service.ts
 */
import { once } from "node:events";
import { defineTool } from "@github/copilot-sdk";
import { type CreateSessionOptions, ERRORS, Fleet, isFleetError } from "copilotfleet";
import express, { type Express, type NextFunction, type Request, type Response } from "express";

const TEAM_SESSION = "team-project-review";

export interface ServiceOptions {
  /** The users of the team. The first one owns its session. */
  team: readonly string[];
  /** Your own code. The model calls it as a tool, and it runs in this process. */
  stateOfOrder: (order: string) => Promise<string>;
}

export function serviceApp(fleet: Fleet, { team, stateOfOrder }: ServiceOptions): Express {
  const orderState = defineTool("order_state", {
    description: "Returns the state of an order.",
    parameters: { type: "object", properties: { order: { type: "string" } }, required: ["order"] },
    handler: async ({ order }: { order: string }) => await stateOfOrder(order),
    skipPermission: true,
  });
  const app = express();
  app.disable("x-powered-by");
  app.use(express.json());
  app.post("/api/analyze", async (request, response) => {
    const [user, prompt] = [userOf(request), textOf(request, "prompt")];
    response.json({ result: await analyze(fleet, prompt, { user, tools: [orderState] }) });
  });
  app.post("/team-chat", async (request, response) => {
    const [user, message] = [userOf(request), textOf(request, "message")];
    await ensureTeamSession(fleet, team);
    const { text } = await fleet.sessions.use(TEAM_SESSION, message, { user, wait: "60s" });
    response.json({ content: text });
  });
  app.use((request) => {
    throw new RequestError(404, "NOT_FOUND", `There is no ${request.method} ${request.path} here.`);
  });
  // Express recognizes an error handler by its four parameters.
  app.use((error: unknown, _request: Request, response: Response, _next: NextFunction) => {
    const { status, code, message } = answerTo(error);
    response.status(status).json({ error: { code, message } });
  });
  return app;
}

async function analyze(fleet: Fleet, prompt: string, options: CreateSessionOptions): Promise<string> {
  // An ephemeral session is deleted when we leave it. If this process dies before that, gc deletes the session.
  const session = await fleet.sessions.create({ ...options, ephemeral: true });
  try {
    return (await fleet.sessions.send(session, prompt)).text;
  } finally {
    await fleet.sessions.leave(session);
  }
}

async function ensureTeamSession(fleet: Fleet, [owner = "", ...members]: readonly string[]): Promise<void> {
  try {
    await fleet.sessions.leave(await fleet.sessions.create({ user: owner, sessionId: TEAM_SESSION, members }));
  } catch (error) {
    if (!isFleetError(error, "FLEET_SESSION_EXISTS")) throw error;
  }
}

/** An error in a request that never reaches the fleet. */
class RequestError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

/** The user, as named by the authenticating proxy in front of the service. Never take the user from the body of a request. */
function userOf(request: Request): string {
  const user = request.get("x-authenticated-user");
  if (user) return user;
  throw new RequestError(401, "UNAUTHENTICATED", "The header X-Authenticated-User is missing.");
}

/** A text from the JSON body. */
function textOf({ body }: Request, field: string): string {
  const value: unknown = (body as Record<string, unknown> | null | undefined)?.[field];
  if (typeof value === "string" && value.trim() !== "") return value;
  throw new RequestError(400, "BAD_REQUEST", `The JSON body needs "${field}", a text that is not empty.`);
}

/** Tells the caller only what the caller can fix. Everything else stays in the log of this service. */
function answerTo(error: unknown): { status: number; code: string; message: string } {
  if (error instanceof RequestError) return error;
  if (isFleetError(error)) {
    const { httpStatus } = ERRORS[error.code];
    if (httpStatus !== 500) return { status: httpStatus, code: error.code, message: error.message };
  }
  // Express itself refuses a body that is not JSON or is too large.
  const { status, expose, message = "" } = error as { status?: number; expose?: boolean; message?: string };
  if (status !== undefined && expose === true) return { status, code: "BAD_REQUEST", message };
  console.error(error);
  return { status: 500, code: "INTERNAL", message: "The service failed at this request." };
}

if (process.argv[1] === import.meta.filename) {
  await using fleet = await Fleet.open();
  const { TEAM = "", PORT = "3000" } = process.env;
  const app = serviceApp(fleet, { team: TEAM.split(","), stateOfOrder: async (order) => `${order} was sent today` });
  const server = app.listen(Number(PORT));
  await Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
  // Let running requests end.
  await new Promise((resolve) => server.close(resolve));
}
