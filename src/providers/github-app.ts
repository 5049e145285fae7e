import { createPrivateKey, type KeyObject } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { FleetError, quote } from "../base/errors.js";
import type { NamedSource } from "../base/server.js";
import { isLoopback } from "../base/values/network.js";
import { parseObject } from "../base/values/text.js";
import type { Environment } from "../config/load/paths.js";
import type { Config } from "../config/schema.js";
import { nameOfSource, PRIVATE_KEY, readSecret, type SecretContext, secretFault, TOKEN } from "../config/secret.js";
import { openUpstreams } from "./gateway/upstream.js";

export type GitHubAppSettings = NonNullable<Config["auth"]["githubApp"]>;

/** A new installation token, and how long GitHub accepts it, in milliseconds from now. */
export interface Minted {
  token: string;
  lifetimeMs: number;
}

/**
 * How long before and after its creation an App's proof is valid, in seconds. GitHub accepts at most 10 minutes, and
 * its clock may differ from this machine's by a minute.
 */
const [PROOF_BEFORE_S, PROOF_AFTER_S] = [60, 8 * 60];
const LARGEST_ANSWER_BYTES = 256 * 1024;
const USUAL_LIFETIME_MS = 60 * 60 * 1000;

/**
 * The address of GitHub's API: from the variable of the runtime (which tests set), or else from the variable of GitHub
 * Actions, or else the public address.
 */
export function gitHubApi(env: Environment): string {
  return env.COPILOT_DEBUG_GITHUB_API_URL ?? env.GITHUB_API_URL ?? "https://api.github.com";
}

/**
 * Asks GitHub for a token of the App's installation. No message contains the key, the proof or the token.
 *
 * @throws FleetError `FLEET_CREDENTIAL_REFUSED` when GitHub refuses the App or its installation;
 * `FLEET_TOKEN_UNAVAILABLE` when the key cannot be read, is not an RSA key, or GitHub cannot be asked.
 */
export async function mintInstallationToken(
  app: GitHubAppSettings,
  env: Environment,
  signal: AbortSignal,
): Promise<Minted> {
  const key = await readKey(app.privateKey, { env, signal });
  const api = gitHubApi(env);
  const url = URL.canParse(api) ? new URL(api) : null;
  if (
    url === null ||
    !(url.protocol === "https:" || (url.protocol === "http:" && isLoopback({ host: url.hostname })))
  ) {
    throw unavailable(`${quote(api)} is not an https:// address of GitHub's API`);
  }
  const path = `${url.pathname.replace(/\/+$/, "")}/app/installations/${app.installationId}/access_tokens`;
  const { status, headers, text } = await post(url, path, { proof: await proofOf(app.appId, key), env, signal });
  if (status === 201) return readMinted(text, headers.date);
  const reason = messageOf(text);
  const isLimited = status === 429 || headers["retry-after"] !== undefined || headers["x-ratelimit-remaining"] === "0";
  if (status < 400 || status >= 500 || isLimited) throw unavailable(`${url.host} answered with ${status}${reason}`);
  throw new FleetError(
    "FLEET_CREDENTIAL_REFUSED",
    `GitHub refuses a token to installation ${app.installationId} of App ${app.appId} (${status}${reason}).`,
    {
      suggestions: [
        "Compare auth.githubApp with the settings of the App, and check that the installation is not suspended.",
        "copilotfleet doctor",
      ],
    },
  );
}

async function readKey(source: NamedSource, context: SecretContext): Promise<KeyObject> {
  const pem = await readSecret(source, PRIVATE_KEY, context);
  try {
    const key = createPrivateKey(pem);
    if (key.asymmetricKeyType === "rsa") return key;
  } catch {
    // Do not keep this error as the cause, because it may quote the key.
  }
  throw new FleetError(
    "FLEET_TOKEN_UNAVAILABLE",
    `The private key from ${nameOfSource(source)} is not an RSA key in PEM form.`,
    { suggestions: ["Set auth.githubApp.privateKey to the private key that GitHub generated for the App."] },
  );
}

/** The App's proof of its identity: a JSON Web Token that its key signs. */
async function proofOf(appId: number, key: KeyObject): Promise<string> {
  const { SignJWT } = await import("jose");
  const nowS = Math.floor(Date.now() / 1000);
  return await new SignJWT({ iat: nowS - PROOF_BEFORE_S, exp: nowS + PROOF_AFTER_S, iss: String(appId) })
    .setProtectedHeader({ alg: "RS256", typ: "JWT" })
    .sign(key);
}

interface Answer {
  status: number;
  headers: IncomingMessage["headers"];
  text: string;
}

async function post(
  url: URL,
  path: string,
  { proof, env, signal }: { proof: string; env: Environment; signal: AbortSignal },
): Promise<Answer> {
  using upstream = openUpstreams(url.origin, env)();
  const headers = {
    host: url.host,
    authorization: `Bearer ${proof}`,
    accept: "application/vnd.github+json",
    "user-agent": "copilotfleet",
    "x-github-api-version": "2022-11-28",
    "content-length": "0",
  };
  const request = upstream.request("POST", path, headers);
  const onAbort = () => request.destroy(new Error("it did not answer in time"));
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      request.once("response", resolve).on("error", reject).end();
      if (signal.aborted) onAbort();
    });
    let text = "";
    for await (const piece of answer.setEncoding("utf8")) {
      text += piece as string;
      if (text.length > LARGEST_ANSWER_BYTES) throw new Error("its answer is too long");
    }
    return { status: answer.statusCode ?? 0, headers: answer.headers, text };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw unavailable(`${url.host} cannot be asked for it: ${reason}`, error);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

function readMinted(text: string, date: string | undefined): Minted {
  const { token, expires_at: end } = parseObject(text) ?? {};
  if (typeof token !== "string" || secretFault(token, TOKEN) !== null)
    throw unavailable("GitHub's answer has no token");
  // Count from the time in GitHub's header `Date`, because this machine's clock may be wrong.
  const now = Date.parse(date ?? "");
  const lifetimeMs = Date.parse(String(end)) - (Number.isNaN(now) ? Date.now() : now);
  return { token, lifetimeMs: Number.isNaN(lifetimeMs) ? USUAL_LIFETIME_MS : Math.max(0, lifetimeMs) };
}

function messageOf(text: string): string {
  const { message } = parseObject(text) ?? {};
  return typeof message === "string" && message !== "" ? `: ${quote(message.slice(0, 200))}` : "";
}

function unavailable(problem: string, cause?: unknown): FleetError {
  return new FleetError("FLEET_TOKEN_UNAVAILABLE", `There is no token of auth.githubApp: ${problem}.`, {
    cause,
    suggestions: ["copilotfleet doctor"],
  });
}
