import { keyOf, signedOut } from "./key.js";
import { problemFrom, problemOf } from "./problem.js";

export interface Ask {
  body?: unknown;
  headers?: Readonly<Record<string, string>>;
  signal?: AbortSignal;
}

/** When the API last accepted a request of this page, in milliseconds of `performance.now()`. */
export let acceptedAt = 0;

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
  if (response.ok) {
    acceptedAt = performance.now();
    return response;
  }
  if (response.status === 401) signedOut();
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
