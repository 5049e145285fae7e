import { isObject } from "../base/values/text.js";
import type { Environment } from "../config/load/paths.js";

/** The sources of models that this machine offers. Contains names of variables, never their values. */
export interface Detected {
  /** The variable that contains a GitHub token; null if none is set. */
  tokenVariable: string | null;
  /** Whether `gh`, the command of GitHub, is logged in. */
  hasGhLogin: boolean;
  /** The variables that are set and contain keys of model services. */
  keyVariables: string[];
  /** The Ollama on this machine, or the one that OLLAMA_HOST names; null if it does not answer. */
  ollama: { baseUrl: string; models: string[] } | null;
}

export const KEY_VARIABLES = {
  openai: "OPENAI_API_KEY",
  azure: "AZURE_OPENAI_API_KEY",
  anthropic: "ANTHROPIC_API_KEY",
} as const;

/** The variables with a GitHub token, in the order in which the Copilot CLI looks for them. */
const TOKEN_VARIABLES = ["COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN"];
const GH_MS = 5_000;
const OLLAMA_MS = 1_000;
const OLLAMA_PORT = "11434";

/** Looks for sources of models. Asks `gh` and Ollama at the same time, each with a time limit. */
export async function detectModels(env: Environment): Promise<Detected> {
  const isSet = (name: string) => (env[name] ?? "") !== "";
  const [hasGhLogin, ollama] = await Promise.all([isLoggedIn(env), findOllama(env)]);
  return {
    tokenVariable: TOKEN_VARIABLES.find(isSet) ?? null,
    hasGhLogin,
    keyVariables: Object.values(KEY_VARIABLES).filter(isSet),
    ollama,
  };
}

async function isLoggedIn(env: Environment): Promise<boolean> {
  const { execa } = await import("execa");
  // Do not read the output, because it may contain a token.
  const result = await execa("gh", ["auth", "status"], {
    stdio: "ignore",
    reject: false,
    extendEnv: false,
    env: { ...env },
    timeout: GH_MS,
  });
  return result.exitCode === 0;
}

async function findOllama(env: Environment): Promise<Detected["ollama"]> {
  const address = ollamaAddress(env.OLLAMA_HOST ?? "");
  if (address === null) return null;
  try {
    const response = await fetch(`${address}/api/tags`, { signal: AbortSignal.timeout(OLLAMA_MS), redirect: "error" });
    const tags: unknown = await response.json();
    if (!isObject(tags) || !Array.isArray(tags.models)) return null;
    const models = tags.models.flatMap((model: unknown) =>
      isObject(model) && typeof model.name === "string" ? [model.name] : [],
    );
    return { baseUrl: `${address}/v1`, models };
  } catch {
    return null;
  }
}

/**
 * Returns the address of Ollama, for a value of OLLAMA_HOST as Ollama itself reads it: scheme and port may be missing,
 * and an address for all interfaces, such as 0.0.0.0, means this machine. Null if the value is not an address.
 */
export function ollamaAddress(host: string): string | null {
  const hasScheme = /^https?:\/\//.test(host);
  const text = hasScheme ? host : `http://${host === "" ? "127.0.0.1" : host.replace(/^(?=:\d)/, "127.0.0.1")}`;
  if (!URL.canParse(text)) return null;
  const url = new URL(text);
  if (url.port === "" && !hasScheme) url.port = OLLAMA_PORT;
  if (url.hostname === "0.0.0.0" || url.hostname === "[::]") url.hostname = "127.0.0.1";
  return url.origin;
}
