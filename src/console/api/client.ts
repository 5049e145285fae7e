import type { Caller, ProblemFields } from "./types.js";

interface Ask {
  body?: unknown;
  headers?: Readonly<Record<string, string>>;
  signal?: AbortSignal;
}

/** Makes a request. @throws Problem if it fails, or the signal's reason if the signal aborts */
export async function send(method: string, path: string, { body, headers = {}, signal }: Ask = {}): Promise<Response> {
  const response = await fetch(path, {
    method,
    headers: {
      "X-Copilotfleet-Console": keyOf() ?? "none",
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...headers,
    },
    credentials: "same-origin",
    cache: "no-store",
    redirect: "error",
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    ...(signal === undefined ? {} : { signal }),
  }).catch((error: unknown) => {
    throw signal?.aborted ? error : problemFrom(error);
  });
  if (response.ok) return response;
  if (response.status === 401) forget();
  throw await problemOf(response);
}

/** Makes a request, and resolves with the JSON of its answer. */
export async function ask<T>(method: string, path: string, options?: Ask): Promise<T> {
  const response = await send(method, path, options);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

/** The API path of a session. `rest` adds a part to it, such as `/turns`. */
export function sessionPath(id: string, rest = ""): string {
  return `/v1/sessions/${segment(id)}${rest}`;
}

/**
 * Encodes a part of a path. Browsers remove the parts "." and "..", even if they are encoded, and would request another
 * path. An added blank prevents this.
 */
export function segment(text: string): string {
  return /^\.{1,2}$/.test(text) ? `${text}%20` : encodeURIComponent(text);
}

/*
 * The key that decrypts the token in the cookie. No script can read the cookie, so the key alone is worth nothing. The
 * key lives as long as this tab. A new tab asks the other tabs for the key.
 */

const NAME = "copilotfleet.key";
/** How long to wait for the answers of other tabs, in milliseconds. */
const ANSWER_MS = 250;

type Message = { wanted: true } | { key: string } | { signedOut: true };

const channel = new BroadcastChannel("copilotfleet");
const listeners = new Set<() => void>();

channel.addEventListener("message", ({ data }: MessageEvent<Message>) => {
  const key = keyOf();
  if ("wanted" in data && key !== null) channel.postMessage({ key } satisfies Message);
  if ("signedOut" in data) forget();
});

function keyOf(): string | null {
  return sessionStorage.getItem(NAME);
}

/** The key of this tab, or else that of another tab; null if no tab has a key. */
async function findKey(): Promise<string | null> {
  const own = keyOf();
  if (own !== null) return own;
  const given = await new Promise<string | null>((resolve) => {
    const listen = ({ data }: MessageEvent<Message>) => {
      if ("key" in data) resolve(data.key);
    };
    channel.addEventListener("message", listen);
    channel.postMessage({ wanted: true } satisfies Message);
    setTimeout(() => {
      channel.removeEventListener("message", listen);
      resolve(null);
    }, ANSWER_MS);
  });
  if (given !== null) sessionStorage.setItem(NAME, given);
  return given;
}

/** Calls the function when this tab is signed out. @returns a function that removes the listener */
export function onSignedOut(listener: () => void): () => void {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

/** Signs this tab out. */
function forget(): void {
  sessionStorage.removeItem(NAME);
  for (const listener of listeners) listener();
}

/** An error of the API, as RFC 9457 describes it, or a failure to reach the API. */
export class Problem extends Error {
  readonly status: number;
  readonly suggestions: readonly string[];
  readonly requestId: string;

  constructor({ status, detail, suggestions = [], requestId = "" }: ProblemFields) {
    super(detail);
    this.status = status;
    this.suggestions = suggestions;
    this.requestId = requestId;
  }
}

/** Turns anything that was thrown into a problem. */
export function problemFrom(thrown: unknown): Problem {
  if (thrown instanceof Problem) return thrown;
  return new Problem({
    status: 0,
    detail: "The console cannot reach the fleet.",
    suggestions: ["Check your network, and whether serve runs. The console tries again by itself."],
  });
}

async function problemOf(response: Response): Promise<Problem> {
  try {
    return new Problem((await response.json()) as ProblemFields);
  } catch {
    return new Problem({ status: response.status, detail: `The fleet answered with status ${response.status}.` });
  }
}

/** Returns the user for whom the one-time code was issued. Does not use the code up. */
export async function ownerOf(code: string): Promise<string> {
  return (await ask<{ user: string }>("POST", "/console/session", { body: { code } })).user;
}

/** Signs in with a token, or with a one-time code that was issued for `user`. */
export async function signIn(credential: { token: string } | { code: string; user: string }): Promise<Caller> {
  const { key } = await ask<{ key: string }>("POST", "/console/session", { body: credential });
  sessionStorage.setItem(NAME, key);
  return await whoAmI();
}

/** Signs out, in all tabs. */
export async function signOut(): Promise<void> {
  try {
    await send("DELETE", "/console/session");
  } finally {
    channel.postMessage({ signedOut: true } satisfies Message);
    forget();
  }
}

async function whoAmI(): Promise<Caller> {
  return await ask<Caller>("GET", "/v1/me");
}

/** The user who is still signed in from an earlier visit in this browser; null if nobody is. */
export async function signedIn(): Promise<Caller | null> {
  if ((await findKey()) === null) return null;
  try {
    return await whoAmI();
  } catch (error) {
    if (error instanceof Problem && error.status === 401) return null;
    throw error;
  }
}

/** Returns the one-time code in the address, and removes it from the address and the history. Null if there is none. */
export function takeCode(): string | null {
  const code = /^#code=([\w-]+)$/.exec(location.hash)?.[1] ?? null;
  if (code !== null) history.replaceState(null, "", "/");
  return code;
}
