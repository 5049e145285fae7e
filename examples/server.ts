import type { Server } from "node:http";
import { Fleet, isFleetError } from "copilotfleet";
import express, { type Express, type NextFunction, type Request, type Response } from "express";

/** The parts that the four services share: identity and input of a request, answers to errors, and a clean shutdown. */

/** The HTTP status for each exit code of a fleet's error. */
const STATUS: Record<number, number> = { 2: 400, 3: 500, 4: 404, 5: 409, 6: 503, 7: 502, 8: 503 };

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

/**
 * The user, as named by the authenticating proxy in front of the service. Never take the user from the body of a request.
 *
 * @throws RequestError 401 when the proxy names no user.
 */
export function userOf(request: Request): string {
  const user = request.get("x-authenticated-user");
  if (user === undefined || user === "") {
    throw new RequestError(401, "UNAUTHENTICATED", "The header X-Authenticated-User is missing.");
  }
  return user;
}

/** A text from the JSON body. @throws RequestError 400 when it is missing or empty. */
export function textOf(request: Request, field: string): string {
  const body: unknown = request.body;
  const value = typeof body === "object" && body !== null ? (body as Record<string, unknown>)[field] : undefined;
  if (typeof value !== "string" || value.trim() === "") {
    throw new RequestError(400, "BAD_REQUEST", `The JSON body needs "${field}", a text that is not empty.`);
  }
  return value;
}

export function newApp(addRoutes: (app: Express) => void): Express {
  const app = express();
  app.disable("x-powered-by");
  app.use(express.json());
  addRoutes(app);
  app.use((request) => {
    throw new RequestError(404, "NOT_FOUND", `There is no ${request.method} ${request.path} here.`);
  });
  // Express recognizes an error handler by its four parameters.
  app.use((error: unknown, _request: Request, response: Response, _next: NextFunction) => {
    const { status, error: told } = answerFor(error);
    response.status(status).json({ error: told });
  });
  return app;
}

/**
 * Answers with server-sent events: `delta` for each piece of the reply, then `end`, or `error`. When the client closes the
 * connection, the signal aborts, which ends the turn.
 */
export async function stream(
  response: Response,
  work: (onDelta: (text: string) => void, signal: AbortSignal) => Promise<object>,
): Promise<void> {
  const hungUp = new AbortController();
  response.once("close", () => hungUp.abort());
  const send = (event: string, data: object) => response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
  // The client can see that the stream is open before the model produces its first word.
  response.flushHeaders();
  try {
    send("end", await work((text) => send("delta", { text }), hungUp.signal));
  } catch (error) {
    if (!hungUp.signal.aborted) send("error", { error: answerFor(error).error });
  }
  response.end();
}

interface ErrorAnswer {
  status: number;
  error: { code: string; message: string };
}

/** Tells the caller only what the caller can fix. Everything else stays in the log of this service. */
function answerFor(error: unknown): ErrorAnswer {
  if (error instanceof RequestError) {
    return { status: error.status, error: { code: error.code, message: error.message } };
  }
  if (isFleetError(error)) {
    return { status: STATUS[error.exit] ?? 500, error: { code: error.code, message: error.message } };
  }
  // Express itself refuses a body that is not JSON or is too large.
  const { status, expose, message } = error as { status?: number; expose?: boolean; message?: string };
  if (status !== undefined && expose === true) {
    return { status, error: { code: "BAD_REQUEST", message: message ?? "The request cannot be read." } };
  }
  console.error(error);
  return { status: 500, error: { code: "INTERNAL", message: "The service failed at this request." } };
}

/** Serves until SIGTERM or SIGINT, then lets running requests end. */
export async function serve(createApp: (fleet: Fleet) => Express): Promise<void> {
  await using fleet = await Fleet.open();
  const app = createApp(fleet);
  const server = await new Promise<Server>((resolve) => {
    const listening = app.listen(Number(process.env.PORT ?? 3000), () => resolve(listening));
  });
  await new Promise((resolve) => {
    process.once("SIGTERM", resolve);
    process.once("SIGINT", resolve);
  });
  await new Promise((resolve) => server.close(resolve));
}
