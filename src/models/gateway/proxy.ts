import type { Environment } from "../../config/load/paths.js";

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
