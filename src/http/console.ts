import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { serveStatic } from "@hono/node-server/serve-static";
import { type Context, Hono, type MiddlewareHandler } from "hono";
import { generateCookie } from "hono/cookie";
import { parse } from "hono/utils/cookie";
import * as v from "valibot";
import { FleetError, isFleetError, quote, systemCode } from "../base/errors.js";
import type { Env } from "./app.js";
import type { DoorState } from "./door-state.js";
import { readBody, readInput } from "./input.js";
import { invalid } from "./problem.js";
import type { Visit } from "./visit.js";

/**
 * The header in which each request of the console sends the key that decrypts its cookie. A page of another origin
 * cannot send this header.
 */
export const KEY_HEADER = "X-Copilotfleet-Console";

/** How long a browser keeps the cookie, in milliseconds, unless the token expires earlier. */
const LONGEST_MS = 8 * 3_600_000;
/** The longest token that fits into the cookie, because browsers refuse a cookie of more than 4,096 bytes. */
export const LONGEST_TOKEN = 2_900;

/**
 * Precedes the token in the encrypted text if the fleet issued the token for a one-time code. No token begins with this
 * text.
 */
const ISSUED = "issued ";

const CIPHER = "aes-256-gcm";
const KEY_BYTES = 32;
const IV_BYTES = 12;
const TAG_BYTES = 16;

export interface Credential {
  token: string;
  /** Whether the fleet issued the token for a one-time code. Such a token is revoked when the user signs out. */
  isIssued: boolean;
}

/** The parts of a request that decide which cookie counts. */
export interface Asking {
  header(name: string): string | undefined;
  isSecure: boolean;
}

/**
 * Encrypts a token for a cookie. Only the page keeps the key, so neither the cookie nor the page alone contains the
 * token. A cookie with a plain token would be unsafe: browsers send cookies to all ports of a host, and programs of
 * other users may listen there.
 */
export function seal({ token, isIssued }: Credential): { sealed: string; key: string } {
  const key = randomBytes(KEY_BYTES);
  const iv = randomBytes(IV_BYTES);
  const cipher = createCipheriv(CIPHER, key, iv);
  const parts = [iv, cipher.update(`${isIssued ? ISSUED : ""}${token}`, "utf8"), cipher.final(), cipher.getAuthTag()];
  return { sealed: Buffer.concat(parts).toString("base64url"), key: key.toString("base64url") };
}

/** Decrypts a cookie. @returns undefined if the key does not belong to the cookie */
export function unseal(sealed: string, key: string): Credential | undefined {
  const [bytes, secret] = [Buffer.from(sealed, "base64url"), Buffer.from(key, "base64url")];
  if (secret.length !== KEY_BYTES || bytes.length <= IV_BYTES + TAG_BYTES) return undefined;
  const decipher = createDecipheriv(CIPHER, secret, bytes.subarray(0, IV_BYTES), { authTagLength: TAG_BYTES });
  decipher.setAuthTag(bytes.subarray(-TAG_BYTES));
  try {
    const content = [decipher.update(bytes.subarray(IV_BYTES, -TAG_BYTES)), decipher.final()];
    const text = Buffer.concat(content).toString("utf8");
    const isIssued = text.startsWith(ISSUED);
    return { token: isIssued ? text.slice(ISSUED.length) : text, isIssued };
  } catch {
    return undefined;
  }
}

/**
 * Returns the credential in the cookie of a request. Undefined if the cookie or its key is missing, if they do not
 * belong together, or if a page of another origin makes the request. Only our own page has the key.
 */
export function credentialIn(asking: Asking): Credential | undefined {
  const key = asking.header(KEY_HEADER);
  if (key === undefined || !isOwnPage(asking)) return undefined;
  const sealed = cookieOf(asking);
  return sealed === undefined ? undefined : unseal(sealed, key);
}

/** Whether the request comes from our own page, judging by the browser's headers. */
export function isOwnPage({ header }: Pick<Asking, "header">): boolean {
  const [site, origin, host] = [header("Sec-Fetch-Site"), header("Origin"), header("Host")];
  // Browsers send `Sec-Fetch-Site` only to HTTPS and loopback addresses. If it is missing, compare the origin.
  if (site !== undefined) return site === "same-origin";
  return origin === undefined || (URL.canParse(origin) && new URL(origin).host === host?.toLowerCase());
}

/** The value of `Set-Cookie` for a sealed token. @param expiresAt when the token expires (ISO 8601); null: never */
export function cookieFor(asking: Asking, sealed: string, expiresAt: string | null, now: number): string {
  const leftMs = expiresAt === null ? LONGEST_MS : Math.min(LONGEST_MS, Date.parse(expiresAt) - now);
  return written(asking, sealed, Math.max(1, Math.floor(leftMs / 1_000)));
}

export function removedCookie(asking: Asking): string {
  return written(asking, "", 0);
}

function written(asking: Asking, value: string, maxAge: number): string {
  const options = { path: "/", maxAge, httpOnly: true, sameSite: "Strict" } as const;
  return generateCookie(nameOf(asking), value, isSecure(asking) ? { ...options, prefix: "host" } : options);
}

function cookieOf(asking: Asking): string | undefined {
  const name = nameOf(asking);
  const cookies = parse(asking.header("Cookie") ?? "");
  // The prefix shows that the browser received the cookie over HTTPS. So accept this cookie even on a connection
  // without TLS, because TLS may end at a proxy in front of the API.
  return cookies[`__Host-${name}`] ?? (asking.isSecure ? undefined : cookies[name]);
}

/** Browsers share cookies between all ports of a host, so the name contains the port. */
function nameOf({ header }: Asking): string {
  const port = /:(\d+)$/.exec(header("Host") ?? "")?.[1];
  return port === undefined ? "copilotfleet" : `copilotfleet-${port}`;
}

function isSecure({ header, isSecure: hasTls }: Asking): boolean {
  return hasTls || header("Origin")?.startsWith("https://") === true;
}

/** The page itself. All other files have names with a hash of their content. */
const PAGE = "index.html";
/** The files of the console, each also compressed (`.br`). */
const ROOT = join(dirname(createRequire(import.meta.url).resolve("copilotfleet/package.json")), "dist", "console");

/**
 * Returns the names of missing files: those that the page refers to, directly or through other files, and the page
 * itself.
 */
export async function missingFiles(root = ROOT): Promise<string[]> {
  const missing: string[] = [];
  const needed = new Set([PAGE]);
  for (const name of needed) {
    const text = await readFile(join(root, name), "utf8").catch((error: unknown) => {
      if (systemCode(error) !== "ENOENT") throw error;
      return null;
    });
    if (text === null) missing.push(name);
    for (const [, other = ""] of text?.matchAll(/"(?:\/console|\.)\/([\w-]+\.(?:css|js))"/g) ?? []) needed.add(other);
  }
  return missing;
}

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

async function serveFile(c: Context<Env>, files: MiddlewareHandler<Env>): Promise<Response> {
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

type Request = Context<Env>;

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
export async function signIn(door: DoorState, c: Request): Promise<Response> {
  const visit = c.get("visit");
  visit.route = "POST /console/session";
  const asking = askingOf(c);
  if (!isOwnPage(asking)) throw foreignPage();
  using work = door.begin();
  const given = await readBody(c, LARGEST_BODY, UNCOUNTED);
  const input = readInput({ params: null, query: null, body }, { params: {}, query: c.req.queries(), body: given });
  const credential = input.body as Given;
  const owner = "code" in credential ? await door.fleet.tokens.ownerOf(credential.code) : null;
  if (owner !== null && !("user" in credential)) {
    visit.ended(200);
    return answer(visit, { user: owner });
  }
  const { token, isIssued } = await tokenFor(door, credential);
  const identity = await visit.signOn(`Bearer ${token}`, work);
  work.keep(await door.shares.admitUser(identity.user, { relayed: false, everywhere: false }));
  if (token.length > LONGEST_TOKEN)
    throw invalid(`The token has ${token.length} characters. The console takes at most ${LONGEST_TOKEN}.`);
  const { sealed, key } = seal({ token, isIssued });
  visit.ended(200);
  const cookie = cookieFor(asking, sealed, identity.expiresAt, Date.now());
  return answer(visit, { key }, { "Set-Cookie": cookie });
}

function answer(visit: Visit, body: object, headers: Readonly<Record<string, string>> = {}): Response {
  return new Response(JSON.stringify(body), {
    headers: { ...visit.headers, "Content-Type": "application/json", ...headers },
  });
}

/** Signs a browser out: removes its cookie, and revokes the token if the fleet issued it for a code. */
export async function signOut(door: DoorState, c: Request): Promise<Response> {
  const visit = c.get("visit");
  visit.route = "DELETE /console/session";
  const asking = askingOf(c);
  if (!isOwnPage(asking)) throw foreignPage();
  const credential = credentialIn(asking);
  if (credential?.isIssued === true) {
    using work = door.begin();
    // If the token has expired or was revoked, there is nothing left to revoke, so only remove the cookie.
    const identity = await visit.signOn(`Bearer ${credential.token}`, work).catch((error: unknown) => {
      if (isFleetError(error, "FLEET_TOKEN_REFUSED")) return null;
      throw error;
    });
    if (identity !== null) await door.fleet.tokens.revoke({ ids: [identity.tokenId] }, { ignoreNotFound: true });
  }
  visit.ended(204);
  return new Response(null, { status: 204, headers: { ...visit.headers, "Set-Cookie": removedCookie(asking) } });
}

/**
 * The token that the browser sent, or a new token for its one-time code. For an invalid code, returns a text that the
 * sign-on refuses like an invalid token. Does not accept a token in place of a code: the page takes codes from links,
 * and a link must never contain a token.
 */
async function tokenFor({ fleet }: DoorState, given: Given) {
  if ("token" in given) return { token: given.token.trim(), isIssued: false };
  const issued = "user" in given ? await fleet.tokens.redeem(given.code, given.user) : null;
  return { token: issued?.token ?? `refused:${given.code}`, isIssued: issued !== null };
}

function askingOf({ req, env }: Request): Asking {
  return { header: (name) => req.header(name), isSecure: "encrypted" in env.incoming.socket };
}

function foreignPage(): FleetError {
  const message = "A page of another origin made this request. Only the console may do that.";
  return new FleetError("FLEET_METHOD_DENIED", message, { suggestions: ["Open the console at its own address."] });
}
