/**
 * A web application with its own sign-on. It signs a JSON Web Token for its user, and the page speaks to the fleet's HTTP API
 * with this token. So the application has no routes for conversations, and never sees one.
 * docs/guide.md describes how to run it.
 */
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import express, { type Express, type Request } from "express";
import { exportJWK, generateKeyPair, SignJWT } from "jose";

/** How long a token is valid, in seconds. A turn ends when its token expires, so this is more than the turns of the page take. */
const TOKEN_S = 3_600;
const COOKIE = "signed-on";

export interface WebOptions {
  /** The address of this application, which is the issuer of its tokens and the origin of its page. */
  origin: string;
  /** The address of the fleet's HTTP API. */
  api: string;
  /** Whether this is the password of this user. Your own sign-on has its place here. */
  isPassword: (user: string, password: string) => boolean;
}

export async function webApp({ origin, api, isPassword }: WebOptions): Promise<Express> {
  // Several copies of an application need the same key. Read it from a file then.
  const { publicKey, privateKey } = await generateKeyPair("ES256");
  const jwk = { ...(await exportJWK(publicKey)), alg: "ES256", use: "sig" };
  const users = new Map<string, string>();
  const userOf = (request: Request) => users.get(cookieOf(request));

  const app = express();
  app.disable("x-powered-by");
  app.use((_request, response, next) => {
    response.set("Content-Security-Policy", `default-src 'self'; connect-src 'self' ${api}; frame-ancestors 'none'`);
    next();
  });
  app.use(express.json());
  /** The key with which the fleet checks the tokens (`identity.jwt` in its configuration). */
  app.get("/jwks.json", (_request, response) => void response.json({ keys: [jwk] }));
  app.post("/sign-on", (request, response) => {
    const { user, password } = (request.body ?? {}) as Record<string, unknown>;
    if (typeof user !== "string" || typeof password !== "string" || !isPassword(user, password)) {
      response.sendStatus(401);
      return;
    }
    const id = randomUUID();
    users.set(id, user);
    // Pages of other sites can neither read this cookie nor make a browser send it.
    response.cookie(COOKIE, id, { httpOnly: true, sameSite: "strict", secure: origin.startsWith("https:") });
    response.sendStatus(204);
  });
  app.post("/sign-off", (request, response) => {
    users.delete(cookieOf(request));
    response.sendStatus(204);
  });
  app.post("/token", async (request, response) => {
    const user = userOf(request);
    if (user === undefined) {
      response.sendStatus(401);
      return;
    }
    const token = await new SignJWT()
      .setProtectedHeader({ alg: "ES256" })
      .setIssuer(origin)
      .setAudience("copilotfleet")
      .setSubject(user)
      .setJti(randomUUID())
      .setIssuedAt()
      .setExpirationTime(`${TOKEN_S} s`)
      .sign(privateKey);
    response.set("Cache-Control", "no-store").json({ token, api, user, validForS: TOKEN_S });
  });
  app.use(express.static(join(import.meta.dirname, "page")));
  return app;
}

function cookieOf(request: Request): string {
  return new RegExp(`(?:^|; )${COOKIE}=([^;]*)`).exec(request.get("cookie") ?? "")?.[1] ?? "";
}

if (process.argv[1] === import.meta.filename) {
  const { ORIGIN = "http://127.0.0.1:3000", API = "http://127.0.0.1:4380", USERS = "" } = process.env;
  const passwords = new Map(USERS.split(",").map((entry) => entry.split(":") as [string, string]));
  const app = await webApp({
    origin: ORIGIN,
    api: API,
    isPassword: (user, password) => password !== "" && passwords.get(user) === password,
  });
  const { hostname, port } = new URL(ORIGIN);
  app.listen(Number(port || 3000), hostname);
}
