import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { serveStatic } from "@hono/node-server/serve-static";
import { Hono, type MiddlewareHandler } from "hono";
import { generateCookie, getCookie } from "hono/cookie";
import * as v from "valibot";
import { FleetError, isFleetError, quote } from "../base/errors.js";
import type { DoorState } from "./door-state.js";
import { readBody, readInput } from "./input.js";
import { invalid } from "./problem.js";
import { type Env, JSON_TYPE, type Request, reply } from "./visit.js";

const CIPHER = "aes-256-gcm";
const KEY_BYTES = 32;
const IV_BYTES = 12;
const TAG_BYTES = 16;

/**
 * The header in which each request of the console sends the key that decrypts its cookie. A page of another origin
 * cannot send this header.
 */
export const KEY_HEADER = "X-Copilotfleet-Console";

/** How long a browser keeps the cookie, in milliseconds, unless the token expires earlier. */
const LONGEST_MS = 8 * 3_600_000;
/** The longest token that fits into the cookie, because browsers refuse a cookie of more than 4,096 bytes. */
export const LONGEST_TOKEN = 2_900;

interface Credential {
  token: string;
  /** Whether the fleet issued the token for a one-time code. Such a token is revoked when the user signs out. */
  isIssued: boolean;
}

/**
 * Encrypts a token for a cookie. Only the page keeps the key, so neither the cookie nor the page alone contains the
 * token. A cookie with a plain token would be unsafe: browsers send cookies to all ports of a host, and programs of
 * other users may listen there.
 */
function seal(credential: Credential): { sealed: string; key: string } {
  const key = randomBytes(KEY_BYTES);
  const iv = randomBytes(IV_BYTES);
  const cipher = createCipheriv(CIPHER, key, iv);
  const parts = [iv, cipher.update(JSON.stringify(credential), "utf8"), cipher.final(), cipher.getAuthTag()];
  return { sealed: Buffer.concat(parts).toString("base64url"), key: key.toString("base64url") };
}

/** Decrypts a cookie. @returns undefined if the key does not belong to the cookie */
function unseal(sealed: string, key: string): Credential | undefined {
  const bytes = Buffer.from(sealed, "base64url");
  try {
    const decipher = createDecipheriv(CIPHER, Buffer.from(key, "base64url"), bytes.subarray(0, IV_BYTES), {
      authTagLength: TAG_BYTES,
    });
    decipher.setAuthTag(bytes.subarray(-TAG_BYTES));
    const content = [decipher.update(bytes.subarray(IV_BYTES, -TAG_BYTES)), decipher.final()];
    return JSON.parse(Buffer.concat(content).toString("utf8"));
  } catch {
    return undefined;
  }
}

/**
 * Returns the credential in the cookie of a request. Undefined if the cookie or its key is missing, if they do not
 * belong together, or if a page of another origin makes the request. Only our own page has the key.
 */
export function credentialIn(c: Request): Credential | undefined {
  const key = c.req.header(KEY_HEADER);
  if (key === undefined || !isOwnPage(c)) return undefined;
  // The prefix shows that the browser received the cookie over HTTPS. So accept this cookie even on a connection
  // without TLS, because TLS may end at a proxy in front of the API.
  const sealed = getCookie(c, nameOf(c), "host") ?? (hasTls(c) ? undefined : getCookie(c, nameOf(c)));
  return sealed === undefined ? undefined : unseal(sealed, key);
}

/** Whether the request comes from our own page, judging by the browser's headers. */
function isOwnPage({ req }: Request): boolean {
  const [site, origin, host] = [req.header("Sec-Fetch-Site"), req.header("Origin"), req.header("Host")];
  // Browsers send `Sec-Fetch-Site` only to HTTPS and loopback addresses. If it is missing, compare the origin.
  if (site !== undefined) return site === "same-origin";
  return origin === undefined || (URL.canParse(origin) && new URL(origin).host === host?.toLowerCase());
}

/** The header that sets or removes the cookie. @param maxAge how long the browser keeps it, in seconds */
function setCookie(c: Request, value: string, maxAge: number): { "Set-Cookie": string } {
  const options = { path: "/", maxAge, httpOnly: true, sameSite: "Strict" } as const;
  const isSecure = hasTls(c) || c.req.header("Origin")?.startsWith("https://") === true;
  return { "Set-Cookie": generateCookie(nameOf(c), value, isSecure ? { ...options, prefix: "host" } : options) };
}

/** Browsers share cookies between all ports of a host, so the name contains the port. */
function nameOf({ req }: Request): string {
  const port = /:(\d+)$/.exec(req.header("Host") ?? "")?.[1];
  return port === undefined ? "copilotfleet" : `copilotfleet-${port}`;
}

function hasTls({ env }: Request): boolean {
  return "encrypted" in env.incoming.socket;
}

/** The page itself. All other files have names with a hash of their content. */
const PAGE = "index.html";
/** The files of the console, each also compressed (`.br`). */
const ROOT = join(dirname(createRequire(import.meta.url).resolve("copilotfleet/package.json")), "dist", "console");

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
  const files = serveStatic<Env>({
    root: ROOT,
    precompressed: true,
    rewriteRequestPath: (path) => (path === "/" ? PAGE : path.slice("/console".length)),
  });
  app.get("/", async (c) => await serveFile(c, files));
  app.get("/console/:name{[\\w-]+\\.(?:css|html|js)}", async (c) => await serveFile(c, files));
  app.post("/console/session", async (c) => await signIn(door, c));
  app.delete("/console/session", async (c) => await signOut(door, c));
  return app;
}

async function serveFile(c: Request, files: MiddlewareHandler<Env>): Promise<Response> {
  const visit = c.get("visit");
  const isPage = c.req.path === "/" || c.req.path === `/console/${PAGE}`;
  const headers = {
    ...visit.headers,
    ...(isPage ? { "Content-Security-Policy": POLICY, "Cross-Origin-Opener-Policy": "same-origin" } : {}),
    "Cache-Control": isPage ? "no-cache" : `public, max-age=${A_YEAR_S}, immutable`,
    Vary: "Accept-Encoding, Origin",
  };
  for (const [header, value] of Object.entries(headers)) c.header(header, value);
  const response = await files(c, async () => undefined);
  if (!(response instanceof Response))
    throw new FleetError("FLEET_METHOD_UNKNOWN", `The console has no file ${quote(c.req.path)}.`);
  visit.route = "GET /";
  visit.ended(response.status);
  return response;
}

const LARGEST_BODY = 20_000;
const WAYS = "a JSON object with a token, with a code, or with a code and its user";
const text = v.string(WAYS);
const body = v.union(
  [
    v.strictObject({ token: text }, WAYS),
    v.strictObject({ code: text }, WAYS),
    v.strictObject({ code: text, user: text }, WAYS),
  ],
  WAYS,
);
type Given = v.InferOutput<typeof body>;

/** Stands in for the user's share of the limits, and counts nothing: before sign-on, the user is not known. */
const UNCOUNTED = { buffers: () => undefined, overBytes: null };

/**
 * Signs a browser in: checks the token as for every other request, and answers with a cookie that contains the
 * encrypted token, and with the key of the cookie.
 *
 * If the body has a one-time code but no user, only returns the code's user, and leaves the code valid. The page then
 * asks whether to sign in as this user. Otherwise, a stranger could send a link that signs people in to the stranger's
 * account, and read what they write there.
 */
async function signIn(door: DoorState, c: Request): Promise<Response> {
  const visit = c.get("visit");
  visit.route = "POST /console/session";
  if (!isOwnPage(c)) throw foreignPage();
  using _ = visit.begin();
  const given = await readBody(c, LARGEST_BODY, UNCOUNTED);
  const input = readInput({ params: null, query: null, body }, { params: {}, query: c.req.queries(), body: given });
  const credential = input.body as Given;
  const owner = "code" in credential ? await door.fleet.ownerOf(credential.code) : null;
  if (owner !== null && !("user" in credential)) return reply(c, 200, JSON_TYPE, JSON.stringify({ user: owner }));
  const { token, isIssued } = await tokenFor(door, credential);
  const { user, expiresAt } = await visit.signOn(`Bearer ${token}`);
  visit.keep(await door.shares.admitUser(user, { relayed: false, everywhere: false }));
  if (token.length > LONGEST_TOKEN)
    throw invalid(`The token has ${token.length} characters. The console takes at most ${LONGEST_TOKEN}.`);
  const { sealed, key } = seal({ token, isIssued });
  const leftMs = expiresAt === null ? LONGEST_MS : Math.min(LONGEST_MS, Date.parse(expiresAt) - Date.now());
  const cookie = setCookie(c, sealed, Math.max(1, Math.floor(leftMs / 1_000)));
  return reply(c, 200, { ...JSON_TYPE, ...cookie }, JSON.stringify({ key }));
}

/** Signs a browser out: removes its cookie, and revokes the token if the fleet issued it for a code. */
async function signOut(door: DoorState, c: Request): Promise<Response> {
  const visit = c.get("visit");
  visit.route = "DELETE /console/session";
  if (!isOwnPage(c)) throw foreignPage();
  const credential = credentialIn(c);
  if (credential?.isIssued === true) {
    using _ = visit.begin();
    // If the token has expired or was revoked, there is nothing left to revoke, so only remove the cookie.
    const identity = await visit.signOn(`Bearer ${credential.token}`).catch((error: unknown) => {
      if (isFleetError(error, "FLEET_TOKEN_REFUSED")) return null;
      throw error;
    });
    if (identity !== null) await door.fleet.tokens.revoke({ ids: [identity.tokenId] }, { ignoreNotFound: true });
  }
  return reply(c, 204, setCookie(c, "", 0));
}

/**
 * The token that the browser sent, or a new token for its one-time code. For an invalid code, returns a text that the
 * sign-on refuses like an invalid token. Does not accept a token in place of a code: the page takes codes from links,
 * and a link must never contain a token.
 */
async function tokenFor({ fleet }: DoorState, given: Given) {
  if ("token" in given) return { token: given.token.trim(), isIssued: false };
  const issued = "user" in given ? await fleet.redeem(given.code, given.user) : null;
  return { token: issued?.token ?? `refused:${given.code}`, isIssued: issued !== null };
}

function foreignPage(): FleetError {
  const message = "A page of another origin made this request. Only the console may do that.";
  return new FleetError("FLEET_METHOD_DENIED", message, { suggestions: ["Open the console at its own address."] });
}
