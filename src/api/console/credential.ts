import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";

/**
 * The header in which each request of the console sends the key that decrypts its cookie. A page of another origin
 * cannot send this header.
 */
export const KEY_HEADER = "X-Copilotfleet-Console";

/** How long a browser keeps the cookie, in milliseconds, unless the token expires earlier. */
const LONGEST_MS = 8 * 3_600_000;
/** The longest token that fits into the cookie, because browsers refuse a cookie of more than 4,096 bytes. */
export const LONGEST_TOKEN = 2_900;

/** A prefix for the cookie's name. Browsers accept a cookie with this prefix only over HTTPS and only for this host. */
const SECURE = "__Host-";

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

function written(asking: Asking, value: string, maxAgeS: number): string {
  const secure = isSecure(asking) ? "; Secure" : "";
  return `${secure === "" ? "" : SECURE}${nameOf(asking)}=${value}; Path=/; Max-Age=${maxAgeS}; HttpOnly; SameSite=Strict${secure}`;
}

function cookieOf(asking: Asking): string | undefined {
  const name = nameOf(asking);
  const cookies = new Map(
    (asking.header("Cookie") ?? "").split(/; */).map((pair) => pair.split("=", 2) as [string, string]),
  );
  // The prefix shows that the browser received the cookie over HTTPS. So accept this cookie even on a connection
  // without TLS, because TLS may end at a proxy in front of the API.
  return cookies.get(`${SECURE}${name}`) ?? (asking.isSecure ? undefined : cookies.get(name));
}

/** Browsers share cookies between all ports of a host, so the name contains the port. */
function nameOf({ header }: Asking): string {
  const port = /:(\d+)$/.exec(header("Host") ?? "")?.[1];
  return port === undefined ? "copilotfleet" : `copilotfleet-${port}`;
}

function isSecure({ header, isSecure: hasTls }: Asking): boolean {
  return hasTls || header("Origin")?.startsWith("https://") === true;
}
