import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";

/** The header of each request of the console, with the key of its cookie. A page of another origin cannot send it. */
export const KEY_HEADER = "X-Copilotfleet-Console";

/** How long a browser keeps the cookie, in milliseconds, unless the token expires earlier. */
const LONGEST_MS = 8 * 3_600_000;
/** Browsers refuse a cookie of more than 4,096 bytes. */
export const LONGEST_TOKEN = 2_900;

/** Browsers accept a cookie with this beginning only over HTTPS and for this host alone. */
const SECURE = "__Host-";

/** Stands before a token that the fleet issued for a code. No token begins with it. */
const ISSUED = "issued ";

const CIPHER = "aes-256-gcm";
const KEY_BYTES = 32;
const IV_BYTES = 12;
const TAG_BYTES = 16;

export interface Credential {
  token: string;
  /** Whether the fleet issued the token for a one-time code, so that it ends when the user signs out. */
  isIssued: boolean;
}

/** The parts of a request that decide which cookie counts. */
export interface Asking {
  header(name: string): string | undefined;
  isSecure: boolean;
}

/**
 * Encrypts a token for a cookie. The page keeps the key. So neither the cookie nor the page alone has the token: browsers send
 * cookies to all ports of a host, and programs of other users may listen there.
 */
export function seal({ token, isIssued }: Credential): { sealed: string; key: string } {
  const key = randomBytes(KEY_BYTES);
  const iv = randomBytes(IV_BYTES);
  const cipher = createCipheriv(CIPHER, key, iv);
  const parts = [iv, cipher.update(`${isIssued ? ISSUED : ""}${token}`, "utf8"), cipher.final(), cipher.getAuthTag()];
  return { sealed: Buffer.concat(parts).toString("base64url"), key: key.toString("base64url") };
}

/** @returns undefined if the key is not that of the cookie */
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
 * The token in the cookie of a request. Undefined if the console did not make the request. The cookie counts only with the header of the key, which proves that our own page makes the request, and only if the browser names no other origin.
 */
export function credentialIn(asking: Asking): Credential | undefined {
  const key = asking.header(KEY_HEADER);
  if (key === undefined || !isOwnPage(asking)) return undefined;
  const sealed = cookieOf(asking);
  return sealed === undefined ? undefined : unseal(sealed, key);
}

/** Whether the page of this address makes the request, as far as the browser reports it. */
export function isOwnPage({ header }: Pick<Asking, "header">): boolean {
  const [site, origin, host] = [header("Sec-Fetch-Site"), header("Origin"), header("Host")];
  // Browsers send this header only to addresses that they trust: those with HTTPS, and loopback addresses.
  if (site !== undefined) return site === "same-origin";
  return origin === undefined || (URL.canParse(origin) && new URL(origin).host === host?.toLowerCase());
}

/** @param expiresAt when the token expires (ISO 8601); null: never */
export function cookieFor(asking: Asking, sealed: string, expiresAt: string | null, now: number): string {
  const leftMs = expiresAt === null ? LONGEST_MS : Math.min(LONGEST_MS, Date.parse(expiresAt) - now);
  return written(asking, sealed, Math.max(1, Math.floor(leftMs / 1_000)));
}

export function removedCookie(asking: Asking): string {
  return written(asking, "", 0);
}

function written(asking: Asking, value: string, maxAgeS: number): string {
  const secure = isSecure(asking) ? "; Secure" : "";
  return `${secure === "" ? "" : SECURE}${nameOf(asking)}=${value}; Path=/; Max-Age=${maxAgeS}; HttpOnly; SameSite=Strict${secure}`;
}

function cookieOf(asking: Asking): string | undefined {
  const name = nameOf(asking);
  const cookies = new Map(
    (asking.header("Cookie") ?? "").split(/; */).map((pair) => pair.split("=", 2) as [string, string]),
  );
  // The name shows that the browser got the cookie over HTTPS, which a proxy in front of the API may speak.
  return cookies.get(`${SECURE}${name}`) ?? (asking.isSecure ? undefined : cookies.get(name));
}

/** Browsers keep one jar for all ports of a host, so the name has the port. */
function nameOf({ header }: Asking): string {
  const port = /:(\d+)$/.exec(header("Host") ?? "")?.[1];
  return port === undefined ? "copilotfleet" : `copilotfleet-${port}`;
}

function isSecure({ header, isSecure: hasTls }: Asking): boolean {
  return hasTls || header("Origin")?.startsWith("https://") === true;
}
