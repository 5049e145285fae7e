import { readdirSync, readFileSync } from "node:fs";
import { type ClientRequest, Agent as HttpAgent, request as httpRequest, type RequestOptions } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { createSecureContext, rootCertificates, connect as tlsConnect } from "node:tls";
import type { Environment } from "../../config/load/paths.js";

/** How long an unused connection to the model service stays open, in milliseconds. */
const UNUSED_MS = 60_000;
/** How long a proxy may take to open a tunnel, in milliseconds. */
const TUNNEL_MS = 30_000;

/**
 * One session's connections to the model service, which stay open between requests. Sessions do not share them. So if
 * an agent makes the service read one request as two, only its own session gets the wrong answer.
 *
 * The disposal closes the unused connections, and each other one when its request has ended.
 */
export interface Upstream extends Disposable {
  /** Begins a request. The caller sends its body. */
  request(method: string, path: string, headers: NodeJS.Dict<string | string[]>): ClientRequest;
}

/**
 * Returns the function that opens the connections of one session. They reach the model service as the runtime would:
 * through the proxy that the environment names, and with the certificates that the runtime trusts.
 *
 * @param env the variables that servers get, because the runtime reads these
 */
export function openUpstreams(baseUrl: string, env: Environment): () => Upstream {
  const url = new URL(baseUrl);
  const isTls = url.protocol === "https:";
  const proxy = proxyFor(url, env);
  const pool = { keepAlive: true, timeout: UNUSED_MS, scheduling: "lifo" } as const;
  // Read the certificates once, because that takes long.
  const tls = isTls ? { ...pool, secureContext: createSecureContext({ ca: trustedCertificates(env) }) } : pool;
  const newAgent = () => {
    if (!isTls) return new HttpAgent(pool);
    return proxy === null ? new HttpsAgent(tls) : new TunnelAgent(proxy, tls);
  };
  const begin = isTls ? httpsRequest : httpRequest;
  // If a request is not encrypted, the proxy needs its complete URL.
  const plainProxy = isTls ? null : proxy;
  const target =
    plainProxy === null ? { host: url.hostname.replace(/^\[|\]$/g, ""), port: url.port } : addressOf(plainProxy);
  return () => {
    const agent = newAgent();
    return {
      request: (method, path, headers) => {
        if (plainProxy === null) return begin({ ...target, agent, method, path, headers });
        const all = { ...headers, host: url.host, ...authorization(plainProxy) };
        return begin({ ...target, agent, method, path: `${url.origin}${path}`, headers: all });
      },
      [Symbol.dispose]: () => {
        agent.maxFreeSockets = 0;
        for (const socket of Object.values(agent.freeSockets).flatMap((sockets) => sockets ?? [])) socket.destroy();
      },
    };
  };
}

function addressOf(proxy: URL): { host: string; port: string | number } {
  return { host: proxy.hostname, port: proxy.port === "" ? 80 : proxy.port };
}

/** Opens TLS connections through a proxy, by its method CONNECT. */
class TunnelAgent extends HttpsAgent {
  readonly #proxy: URL;

  constructor(proxy: URL, options: ConstructorParameters<typeof HttpsAgent>[0]) {
    super(options);
    this.#proxy = proxy;
  }

  override createConnection(
    options: RequestOptions & { servername?: string },
    done?: (error: Error | null, socket: Duplex) => void,
  ): undefined {
    const { host, port } = options;
    const name = String(host).includes(":") ? `[${host}]` : String(host);
    const target = `${name}:${port === "" || port == null ? 443 : port}`;
    const fail = (error: Error) => done?.(error, undefined as unknown as Duplex);
    const connect = httpRequest({
      ...addressOf(this.#proxy),
      method: "CONNECT",
      path: target,
      headers: { host: target, ...authorization(this.#proxy) },
      agent: false,
      timeout: TUNNEL_MS,
    });
    connect.once("timeout", () => connect.destroy(new Error("the proxy did not answer in time")));
    connect.once("error", fail);
    connect.once("connect", ({ statusCode }, socket) => {
      if (statusCode !== 200) {
        socket.destroy();
        fail(new Error(`the proxy refused with status ${statusCode}`));
        return;
      }
      socket.setTimeout(0);
      const secure = tlsConnect({ ...(options as object), socket, servername: String(options.servername ?? host) });
      secure.once("error", fail);
      secure.once("secureConnect", () => {
        secure.off("error", fail);
        done?.(null, secure);
      });
    });
    connect.end();
    return undefined;
  }
}

function authorization({ username, password }: URL): Record<string, string> {
  if (username === "" && password === "") return {};
  const pair = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`;
  return { "proxy-authorization": `Basic ${Buffer.from(pair).toString("base64")}` };
}

/** The files in which Linux distributions and macOS keep the certificates that the machine trusts. */
const SYSTEM_FILES = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/ssl/cert.pem",
];

/**
 * Node.js trusts only its own list. The runtime also trusts the machine's list and the files that these variables name.
 */
function trustedCertificates(env: Environment): string[] {
  const folder = env.SSL_CERT_DIR ?? "";
  const inFolder = folder === "" ? [] : (ifReadable(() => readdirSync(folder)) ?? []).map((name) => join(folder, name));
  const files = [...SYSTEM_FILES, env.SSL_CERT_FILE ?? "", env.NODE_EXTRA_CA_CERTS ?? "", ...inFolder];
  return [...rootCertificates, ...files.flatMap((path) => ifReadable(() => readFileSync(path, "utf8")) ?? [])];
}

/** Like the runtime, ignores a file or folder that cannot be read. */
function ifReadable<T>(read: () => T): T | null {
  try {
    return read();
  } catch {
    return null;
  }
}

/**
 * The proxy that the runtime (1.0.85) would use for a URL, or null. If there is no proxy for the URL's scheme, the
 * runtime uses the proxy for the other scheme. It prefers variables whose names are in lower case.
 */
export function proxyFor(url: URL, env: Environment): URL | null {
  const names = url.protocol === "https:" ? ["https_proxy", "http_proxy"] : ["http_proxy", "https_proxy"];
  const value = names.flatMap((name) => [env[name], env[name.toUpperCase()]]).find((found) => (found ?? "") !== "");
  if (value === undefined || isExcluded(url, env.no_proxy ?? env.NO_PROXY ?? "")) return null;
  const text = value.includes("://") ? value : `http://${value}`;
  return URL.canParse(text) ? new URL(text) : null;
}

/** Whether a list such as `localhost, .example, host:8443` contains the URL. A name includes the names below it. */
function isExcluded(url: URL, list: string): boolean {
  const host = url.hostname.replace(/^\[|\]$/g, "").toLowerCase();
  const port = url.port === "" ? (url.protocol === "https:" ? "443" : "80") : url.port;
  return list.split(/[\s,]+/).some((entry) => {
    if (entry === "*") return true;
    const [, given = entry, only] = /^(.*[^:]):(\d+)$/.exec(entry) ?? [];
    const name = given
      .toLowerCase()
      .replace(/^\*?\./, "")
      .replace(/^\[|\]$/g, "");
    if (name === "" || (only !== undefined && only !== port)) return false;
    return host === name || host.endsWith(`.${name}`);
  });
}
