import { deadline, isTimeout } from "../base/clock.js";
import { systemCode } from "../base/errors.js";
import { isObject } from "../base/values/text.js";

const ANSWER_MS = 5_000;
const LONGEST_ANSWER_BYTES = 512 * 1024;

/**
 * The error if a service gives no usable answer. The message is for the operator's log, and contains nothing that the
 * fleet sent.
 */
export class NoAnswer extends Error {}

export interface JsonAnswer {
  status: number;
  headers: Headers;
  /** Null if the answer is not a JSON object. */
  body: Record<string, unknown> | null;
}

/**
 * Gets a JSON object from a service outside of the fleet. The answer may take up to 5 s and have up to 512 KiB. Follows
 * no redirect, because the configuration names the only address that is trusted.
 *
 * @throws NoAnswer when the service cannot be reached, is too slow, or sends too much.
 */
export async function fetchJson(url: string, headers: Readonly<Record<string, string>> = {}): Promise<JsonAnswer> {
  using limit = deadline(ANSWER_MS);
  try {
    const accept = { accept: "application/json", ...headers };
    const response = await fetch(url, { headers: accept, redirect: "manual", signal: limit.signal });
    const text = await readBounded(response);
    return { status: response.status, headers: response.headers, body: parse(text) };
  } catch (error) {
    if (error instanceof NoAnswer) throw error;
    throw new NoAnswer(`${reasonOf(error)}${url.startsWith("https:") ? proxyHint() : ""}`);
  }
}

async function readBounded(response: Response): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    bytes += chunk.byteLength;
    if (bytes > LONGEST_ANSWER_BYTES) throw new NoAnswer(`its answer has more than ${LONGEST_ANSWER_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function parse(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : null;
  } catch {
    return null;
  }
}

function reasonOf(error: unknown): string {
  if (isTimeout(error)) return `it did not answer within ${ANSWER_MS / 1000} s`;
  const cause = error instanceof Error ? error.cause : undefined;
  return `it cannot be reached: ${systemCode(cause) ?? systemCode(error) ?? "the connection failed"}`;
}

/**
 * A hint for a failed request. Node.js ignores HTTPS_PROXY unless NODE_USE_ENV_PROXY is 1:
 * https://nodejs.org/api/cli.html#node_use_env_proxy1
 */
function proxyHint({ HTTPS_PROXY, https_proxy = HTTPS_PROXY, NODE_USE_ENV_PROXY } = process.env): string {
  const usesProxy = NODE_USE_ENV_PROXY === "1" && process.allowedNodeEnvironmentFlags.has("--use-env-proxy");
  if ((https_proxy ?? "") === "" || usesProxy) return "";
  return "; HTTPS_PROXY counts only with NODE_USE_ENV_PROXY=1 and Node.js 22.21, 24.5 or newer";
}
