import { accessSync, constants, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { Events } from "../../accounts/audit/events.js";
import { isFleetError, quote, type Suggestion, systemCode } from "../../base/errors.js";
import { ifThere } from "../../base/if-there.js";
import { limitTexts, NO_SANDBOX, PROTECTIONS, type SandboxReport, separates } from "../../base/sandbox.js";
import { parseObject } from "../../base/values/text.js";
import type { Config, RemoteProvider } from "../../config/schema.js";
import { nameOfSource } from "../../config/secret.js";
import { fetchJson } from "../../identity/fetch-json.js";
import { IssuerKeys } from "../../identity/jwt.js";
import { doorFiles } from "../../identity/tls/certificates.js";
import { hostFiles } from "../../identity/tls/exposure.js";
import { readTls, type TlsFiles, validityFault } from "../../identity/tls/files.js";
import { tokenSourceFromConfig } from "../../providers/github-token.js";
import { tokensOf } from "../../providers/github-tokens.js";
import { ProviderKey } from "../../providers/provider-key.js";
import { connectProblem } from "../../runtime/launch/launch.js";
import { findRuntime, OLDEST_RUNTIME, packageVersion } from "../../runtime/launch/versions.js";
import { chooseLimits } from "../../sandbox/limits.js";
import { askProxy, networkFolder, SERVERS_FOLDER } from "../../sandbox/network/egress.js";
import { packageFolder } from "../../sandbox/programs.js";
import { findPossible, sandboxNow, toolSettings, withNetwork } from "../../sandbox/sandbox.js";
import { ACCEPT_WEAKER, acceptWeaker, refuseWeaker } from "../../sandbox/trials.js";
import { readIfThere } from "../../store/file/failures.js";
import { askRuntime } from "../versions.js";
import { adviceOf, type Context, type Finding, failed, ok, type Row, warning } from "./checks.js";

/** The last day of security fixes for each version of Node.js: https://github.com/nodejs/Release. */
const END_OF_LIFE: Readonly<Record<number, string>> = {
  20: "2026-04-30",
  22: "2027-04-30",
  23: "2025-06-01",
  24: "2028-04-30",
  25: "2026-06-01",
  26: "2029-04-30",
};

/** The checks that need no configuration. */
export const INSTALLATION: readonly Row[] = [
  { name: "node", look: () => nodeIsSupported(process.versions.node, new Date()) },
  { name: "code", look: () => codeIsProtected(packageFolder(), process.getuid?.() ?? 0) },
];

export const RUNTIME: Row = { name: "runtime", look: runtimeStarts, isSlow: true, cleansUp: true };

export function nodeIsSupported(version: string, now: Date): Finding {
  const detail = `Node.js ${version} on ${process.platform}-${process.arch}`;
  const end = END_OF_LIFE[Number.parseInt(version, 10)];
  if (end === undefined || now.toISOString().slice(0, 10) <= end) return ok(detail);
  const fix = "Install Node.js 22.12 or later, or 24, and then restart serve.";
  return warning(`${detail}; this version has had no security fixes since ${end}`, fix);
}

/**
 * Warns if the fleet's account owns the fleet's code or may write to it. An agent without a sandbox could then change
 * the code, and one under Landlock could change its modes.
 */
export function codeIsProtected(folder: string | null, uid: number): Finding {
  if (folder === null || uid === 0) return ok(folder ?? "part of another package");
  const native = join(folder, "native", `linux-${process.arch}`);
  const programs = (ifThere(() => readdirSync(native)) ?? []).map((name) => join(native, name));
  const paths = [folder, join(folder, "package.json"), join(folder, "bin"), join(folder, "dist"), native, ...programs];
  const items = paths.filter((path) => mayChange(path, uid));
  if (items.length === 0) return ok(`${folder}, which this account cannot change`);
  const detail = `this account can change the fleet's code in ${folder}, so an agent might`;
  return warning(detail, "Install the package as another user, such as root.", items);
}

function mayChange(path: string, uid: number): boolean {
  if (ifThere(() => statSync(path))?.uid === uid) return true;
  try {
    accessSync(path, constants.W_OK);
    return true;
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return false;
  }
}

/** Starts the runtime, because a file that exists may still not run. */
async function runtimeStarts({ config, env, signal }: Context): Promise<Finding> {
  const { path, origin } = findRuntime(config.runtime.path, env);
  const answer = await askRuntime(path, env, signal);
  const version = packageVersion(path);
  const from = version === null ? origin : `${origin}, package ${version}`;
  return ok(
    `${path} (${from}) starts and answers as version ${answer.version}; the oldest supported version is ${OLDEST_RUNTIME}`,
  );
}

/** The checks of the configuration, without the fleet's state. */
export const SETTINGS: readonly Row[] = [
  { name: "isolation", look: isolationOf },
  { name: "sandbox", look: sandboxWorks },
  { name: "limits", look: limitsHold },
  { name: "model", look: modelAnswers },
];

/**
 * Reports how users are separated. Warns if a user's agent or client can run programs that read the state of others.
 */
async function isolationOf({ config, env }: Context): Promise<Finding> {
  const { isolation } = config;
  if (isolation === "shared") return ok("shared: clients of one server are separated by the front door's rules");
  const own = "per-user: each server has its own home, history and token";
  if (separates(await sandboxNow(config, env)))
    return ok(`${own}, and a sandbox keeps those of other users out of its reach`);
  const detail =
    `${own}, but all servers run as one operating-system user, and no sandbox separates them. ` +
    'An agent with a shell, or a client with session.host "owner", can read everything that the fleet\'s account can read, ' +
    "including other users' conversations and keys";
  const open = toolSettings(config);
  if (open.length === 0) return ok(detail);
  const fix = 'If you do not trust all users and their agents, set "session": {"host": "none", "approve": "none"}.';
  return warning(`${detail}. Here, ${open.join(" and ")}`, fix);
}

/** Reports the sandbox that servers get, and what an agent in this sandbox can still do. */
async function sandboxWorks(context: Context): Promise<Finding> {
  const { config, env, stateRoot } = context;
  const { mode } = config.sandbox;
  if (mode === "none") return ok('none, because sandbox.mode is "none"');
  const { mechanism, reasons, network, failure: open } = await findPossible(config, env);
  const problem = await networkProblem(config, { failure: open, stateRoot });
  if (problem !== null) return problem;
  const report = await sandboxNow(config, env);
  const needing = toolSettings(config);
  const isNeeded = mode !== "auto" || needing.length > 0;
  if (report.mode !== "none" || !isNeeded) {
    const found = withNetwork(mechanism ?? NO_SANDBOX, network);
    const weaker = await weakerSandbox(context, found, open === null ? reasons : [...reasons, open]);
    if (weaker !== null) return weaker;
  }
  if (report.mode !== "none") {
    const items = [
      ...reasons,
      ...(open === null ? [] : [`sandbox.network "public" does not work, because ${open}`]),
      ...report.not.map((lacking) => `an agent can ${PROTECTIONS[lacking]}`),
    ];
    const restricted = report.network === undefined ? "" : `, and sandbox.network "${report.network}"`;
    const detail = `${report.mode} works${restricted}`;
    if (!report.not.includes("unix-sockets")) return ok(detail, items);
    // Through a socket of tmux, systemd or Docker, an agent starts programs outside of its sandbox.
    const fix =
      "Run the fleet under an account with no other programs: no tmux, no systemd session, not in the group docker.";
    return warning(`${detail}, but agents reach the Unix sockets of other programs`, fix, items);
  }
  const fix =
    mode === "bwrap"
      ? "Install bubblewrap, and let the fleet's account use user namespaces."
      : "cat /sys/kernel/security/lsm  # must contain landlock; then update the kernel to 6.12 or later";
  const what = mode === "auto" ? "no sandbox works" : `${mode} does not work`;
  const why = mode === "auto" && isNeeded ? `, and ${needing.join(" and ")}, so no server starts` : "";
  return (isNeeded ? failed : warning)(`${what} on this machine${why}`, fix, reasons);
}

/** The problem that only a weaker sandbox works than at the last start; null if there is none. */
async function weakerSandbox(
  { config, env, stateRoot, acceptWeakerSandbox }: Context,
  found: Pick<SandboxReport, "mode" | "not">,
  reasons: readonly string[],
): Promise<Finding | null> {
  try {
    refuseWeaker(stateRoot, found, { config, env, reasons });
    return null;
  } catch (error) {
    if (!isFleetError(error, "FLEET_SANDBOX_UNUSABLE")) throw error;
    if (!acceptWeakerSandbox) return failed(error.message, ACCEPT_WEAKER);
    const store = { hosts: null };
    const events = new Events({ store, config, stateRoot, via: "command", warn: () => undefined });
    try {
      await acceptWeaker(stateRoot, found, events);
    } finally {
      await events.flush();
    }
    return { ...warning(`${error.message} From now on, servers start like this`), fixed: true };
  }
}

/** Reports the limits of each server, and warns of those that nothing on this machine can enforce. */
function limitsHold({ config }: Context): Finding {
  const limits = chooseLimits(config.sandbox.limits, "doctor")?.report;
  if (limits === undefined) return ok("none: a server may use as much as the machine has");
  const detail = `${limitTexts(limits).join(", ")} (by ${limits.by})`;
  if (limits.notHeld.length === 0) return ok(detail);
  const fix = "Run serve as a systemd service with Delegate=yes, or as root. See docs/security.md, Limits of a server.";
  return warning(detail, fix);
}

/** Checks that prompts can reach a model. Runs no token command. */
async function modelAnswers(context: Context): Promise<Finding> {
  const { config, env, quick, signal } = context;
  const { provider, auth } = config;
  try {
    if (provider?.type === "echo") return ok("the built-in echo model");
    if (provider !== null) return await serviceAnswers(provider, context);
    const [setting] = Object.entries(auth).find(([, value]) => value !== null) ?? [];
    if (setting === undefined) {
      return warning(
        "none: neither provider nor auth is set, so only servers that were started with a GitHub token answer prompts",
        "copilotfleet init # or give one server a token with spawn --token-env VAR",
      );
    }
    if (auth.githubApp !== null && quick) return ok("GitHub App from auth.githubApp; --quick does not ask GitHub");
    const { githubToken } = auth;
    if (githubToken === null || (githubToken.from === "env" && !githubToken.name.includes("{user}"))) {
      const source = tokenSourceFromConfig(auth, null);
      if (source !== null) await tokensOf(config, env).get(source, { user: null, signal });
    }
    if (auth.githubApp !== null) return ok("GitHub App from auth.githubApp; GitHub gave a token");
    return ok(`GitHub token from auth.${setting}; only a prompt shows whether GitHub accepts it`);
  } catch (error) {
    if (!isFleetError(error)) throw error;
    return warning(error.message, adviceOf(error.suggestions));
  }
}

/**
 * The problem with the configured network of servers; null if there is none.
 *
 * @param failure why this machine cannot restrict the network in this way; null if it can
 */
async function networkProblem(
  { sandbox }: Pick<Config, "sandbox">,
  { failure, stateRoot }: { failure: string | null; stateRoot: string },
): Promise<Finding | null> {
  if (sandbox.network === "open" || sandbox.network === "auto") return null;
  if (failure !== null) {
    const fix =
      "Install passt, or let the account make network namespaces. See docs/security.md, The network of a server.";
    return failed(`sandbox.network is "${sandbox.network}", but ${failure}, so no server starts`, fix);
  }
  const folder = networkFolder(stateRoot);
  const servers = readIfThere(folder, () => readdirSync(join(folder, SERVERS_FOLDER))) ?? [];
  if (servers.length === 0 || (await askProxy(folder)) !== null) return null;
  const detail = "the proxy of servers with an allow-list does not run, so they reach no host until their next use";
  return warning(detail, "copilotfleet serve # starts it again within seconds");
}

const CONNECT_MS = 2_000;
const ANSWER_MS = 5_000;
/** The size of the largest list of models to read, in bytes. */
const LARGEST_LIST = 4 * 1024 * 1024;

/**
 * Asks the model service for its list of models. That costs nothing, and shows whether the service accepts the key. The
 * key is sent only to the address to which sessions send it.
 */
async function serviceAnswers(provider: RemoteProvider, { config, env, quick }: Context): Promise<Finding> {
  const { type, baseUrl, apiKey: key } = provider;
  const { model } = config.session;
  const apiKey = key === null || key.from === "command" ? null : await new ProviderKey(key, env).get();
  const proxy = config.runtime.env.find((name) => /^https_proxy$/i.test(name) && (env[name] ?? "") !== "");
  const url = new URL(baseUrl);
  const isSecure = url.protocol === "https:";
  const service = `provider of type ${type} at ${url.host}`;
  if (quick) return ok(`${service}; not tried, because of --quick`);
  if (key?.from === "command")
    return ok(`${service}; not tried, because doctor does not run the command of provider.apiKey`);
  if (isSecure && proxy !== undefined) return ok(`${service}; not tried, because servers reach it through ${proxy}`);
  const port = url.port === "" ? (isSecure ? 443 : 80) : Number(url.port);
  const problem = await connectProblem({ host: url.hostname.replace(/^\[|\]$/g, ""), port }, CONNECT_MS);
  const correct: Suggestion = `Start the service, or correct provider.baseUrl (${quote(baseUrl)}).`;
  if (problem !== null) return warning(`${service} cannot be reached: ${problem}`, correct);

  const list = await listModels(provider, apiKey);
  if (list.status === null) return warning(`${service} accepts connections, but did not answer: ${list.why}`, correct);
  const { status, models } = list;
  const variable = key === null ? null : nameOfSource(key);
  if (status === 401 || status === 403) {
    return variable === null
      ? warning(
          `${service} refuses a request without a key (status ${status})`,
          'Set provider.apiKey, for example to {"env": "OPENAI_API_KEY"}.',
        )
      : warning(`${service} refuses the key in ${variable} (status ${status})`, `Put a valid key into ${variable}.`);
  }
  if (status === 429 || status >= 500) return warning(`${service} answers with status ${status}`);
  if (status === 404) {
    const detail = `${service} has no list of models at ${quote(baseUrl)} (status 404), so the key was not checked`;
    return warning(detail, "If prompts fail, correct provider.baseUrl. It often ends with /v1.");
  }
  if (status !== 200 || models === null) {
    return ok(`${service} answers; it does not list its models (status ${status}), so the key was not checked`);
  }
  const accepts = `${service} ${variable === null ? "answers" : `accepts the key in ${variable}`}`;
  if (model === null || models.includes(model)) return ok(accepts);
  // On Azure, the names cannot be compared: sessions name a deployment, and the list has the names of models.
  if (type === "azure")
    return ok(`${accepts}; it does not list its deployments, so session.model ${quote(model)} was not checked`);
  const has = models.length === 0 ? "" : `; it has ${someOf(models)}`;
  const detail = `${accepts}, but does not list the model ${quote(model)}${has}`;
  return warning(detail, "Set session.model to a model of this service.");
}

/** The first models of a list, for a message. */
export function someOf(models: readonly string[]): string {
  const some = models.slice(0, 5).map(quote).join(", ");
  return models.length > 5 ? `${some} and ${models.length - 5} more` : some;
}

type ModelList = { status: number; models: string[] | null } | { status: null; why: string };
type Service = Pick<RemoteProvider, "type" | "baseUrl" | "bearer">;

/** Asks the service for its list of models, which costs nothing. Never rejects. */
export async function listModels({ type, baseUrl, bearer }: Service, apiKey: string | null): Promise<ModelList> {
  const base = baseUrl.replace(/\/+$/, "");
  // For azure and anthropic, the base URL is only the host, and the runtime adds the path.
  const path = { openai: "/models", azure: "/openai/v1/models", anthropic: "/v1/models" }[type];
  const authorization = { authorization: `Bearer ${apiKey}` };
  const headers = { openai: authorization, azure: { "api-key": `${apiKey}` }, anthropic: { "x-api-key": `${apiKey}` } };
  try {
    const response = await fetch(`${base}${path}`, {
      headers: {
        ...(apiKey === null ? {} : bearer ? authorization : headers[type]),
        ...(type === "anthropic" ? { "anthropic-version": "2023-06-01" } : {}),
      },
      redirect: "manual", // never pass the key on to another address
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    if (response.status === 200) return { status: 200, models: modelsIn(await textOf(response)) };
    await response.body?.cancel();
    return { status: response.status, models: null };
  } catch (error) {
    const isLate = error instanceof Error && error.name === "TimeoutError";
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
    return { status: null, why: isLate ? `nothing within ${ANSWER_MS / 1000} s` : String(cause) };
  }
}

/** The body, or an empty text if it is too large. */
async function textOf(response: Response): Promise<string> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of response.body ?? []) {
    bytes += piece.length;
    if (bytes > LARGEST_LIST) return "";
    pieces.push(Buffer.from(piece));
  }
  return Buffer.concat(pieces).toString("utf8");
}

/** The ids in a list of models: `{"data": [{"id": "gpt-5"}]}`. Null if the text is not such a list. */
function modelsIn(text: string): string[] | null {
  const { data } = parseObject(text) ?? {};
  if (!Array.isArray(data)) return null;
  return data.flatMap((model: unknown) => {
    const id = typeof model === "object" && model !== null && "id" in model ? model.id : null;
    return typeof id === "string" ? [id] : [];
  });
}

const DAY_MS = 24 * 3_600_000;
/** A certificate that expires in fewer days than this should have been renewed by now. */
const SOON_DAYS = 14;

/** Checks the files of `serve.tls` and `host.tls`. Runs only if the configuration names such files. */
export const CERTIFICATES: Row = {
  name: "certificates",
  look: ({ config }) => {
    const sides = [doorFiles(config.serve.tls), hostFiles(config.host.tls)].filter((files) => files !== null);
    const findings = sides.map((files) => validityOf(files, new Date()));
    const worst = (wanted: string) => findings.find(({ level }) => level === wanted);
    return worst("failed") ?? worst("warning") ?? ok("valid");
  },
};

/** @throws FleetError `FLEET_CONFIG_INVALID` when the files cannot be used. */
function validityOf(files: TlsFiles, now: Date): Finding {
  const { own } = readTls(files);
  if (own === null || files.cert === null) return ok("no certificate");
  const renew = "Renew the certificate. serve uses the new files within seconds.";
  const fault = validityFault(own, files.cert, now);
  if (fault !== null) return failed(fault.replace(/\.$/, ""), renew);
  const days = Math.floor((new Date(own.validTo).getTime() - now.getTime()) / DAY_MS);
  if (days < SOON_DAYS) return warning(`${files.cert.name} expires in ${days} days, on ${own.validTo}`, renew);
  return ok(`${files.cert.name} is valid until ${own.validTo}`);
}

export const SIGN_ON: Row = { name: "sign-on", look: signOnWorks, isSlow: true };

/** Fetches the keys of each issuer, and checks that GitHub answers. */
async function signOnWorks({ config: { identity } }: Context): Promise<Finding> {
  const { api, organizations } = identity.github;
  const good: string[] = [];
  const wrong: string[] = [];
  for (const issuer of identity.jwt) {
    await new IssuerKeys(issuer).count().then(
      (count) => good.push(`${issuer.issuer}: ${count} ${count === 1 ? "key" : "keys"}`),
      ({ message }: Error) => wrong.push(message),
    );
  }
  if (api !== null) {
    await fetchJson(`${api.replace(/\/$/, "")}/rate_limit`).then(
      ({ status }) => (status < 400 ? good : wrong).push(`${api} answers with status ${status}`),
      ({ message }: Error) => wrong.push(`${api}: ${message}`),
    );
  }
  if (wrong.length > 0) return failed(wrong.join("; "), "Correct identity.jwt or identity.github, or the network.");
  const detail = good.join("; ");
  if (api === null || organizations.length > 0) return ok(detail);
  const fix = 'Set "identity": {"github": {"organizations": ["YOUR-ORGANIZATION"]}}.';
  return warning(`${detail}. Every account on GitHub may sign on`, fix);
}
