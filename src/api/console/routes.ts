import { type Context, Hono } from "hono";
import { FleetError, quote } from "../../errors.js";
import type { Env } from "../app.js";
import type { DoorState } from "../door-state.js";
import { ConsoleFiles, PAGE, plain } from "./files.js";
import { signIn, signOut } from "./sign-in.js";

/** The Content-Security-Policy of the page. It allows only our own files, and no inline scripts or styles. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "connect-src 'self'",
  "img-src 'self' data:",
  "frame-ancestors 'none'",
  "base-uri 'none'",
  "form-action 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types dompurify",
].join("; ");
const A_YEAR_S = 31_536_000;

/** The console: the page with its files, and its sign-in. Everything else that the page needs is a route of the API. */
export function consoleRoutes(door: DoorState): Hono<Env> {
  const app = new Hono<Env>();
  const files = new ConsoleFiles();
  app.get("/", async (c) => await serveFile(c, files, PAGE));
  app.get("/console/:name", async (c) => await serveFile(c, files, c.req.param("name")));
  app.post("/console/session", async (c) => await signIn(door, c));
  app.delete("/console/session", async (c) => await signOut(door, c));
  return app;
}

async function serveFile(c: Context<Env>, files: ConsoleFiles, name: string): Promise<Response> {
  const visit = c.get("visit");
  const file = await files.find(name);
  if (file === null) throw new FleetError("FLEET_METHOD_UNKNOWN", `The console has no file ${quote(name)}.`);
  visit.route = "GET /";
  const isPage = name === PAGE;
  const takesBrotli = /\bbr\b/.test(c.req.header("Accept-Encoding") ?? "");
  visit.ended(200);
  return new Response(new Uint8Array(takesBrotli ? file.compressed : await plain(file)), {
    headers: {
      ...visit.headers,
      ...(isPage ? { "Content-Security-Policy": POLICY, "Cross-Origin-Opener-Policy": "same-origin" } : {}),
      "Cache-Control": isPage ? "no-cache" : `public, max-age=${A_YEAR_S}, immutable`,
      "Content-Type": file.type,
      Vary: "Accept-Encoding, Origin",
      ...(takesBrotli ? { "Content-Encoding": "br" } : {}),
    },
  });
}
