import type { Server } from "node:http";
import { Fleet, isFleetError } from "copilotfleet";
import express, { type Express, type NextFunction, type Request, type Response } from "express";

/** What the four services share: who asks, how errors become answers, and an end that cuts nothing. */

/** The status that an exit code of the contract stands for. */
const STATUS: Record<number, number> = { 2: 400, 3: 500, 4: 404, 5: 409, 6: 503, 7: 502, 8: 503 };

/** The user, as an authenticating proxy in front of the service tells it. Never take it from the body of the request. */
export function userOf(request: Request): string {
  return request.get("x-authenticated-user") ?? "";
}

export function newApp(addRoutes: (app: Express) => void): Express {
  const app = express();
  app.use(express.json());
  addRoutes(app);
  app.use((error: unknown, _request: Request, response: Response, next: NextFunction) => {
    if (!isFleetError(error)) return next(error);
    response.status(STATUS[error.exit] ?? 500).json({ error: { code: error.code, message: error.message } });
  });
  return app;
}

/** Serves until SIGTERM or SIGINT, then lets requests under way end. */
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
