import { randomUUID } from "node:crypto";
import { existsSync, linkSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { FleetError, isFleetError, quote, systemCode } from "../base/errors.js";
import { asSentence, NOT_A_VARIABLE, printable, shellQuote } from "../base/values/text.js";
import { environmentLayer, withoutSettings } from "../config/load/environment.js";
import { findProjectFile, PROJECT_FILE } from "../config/load/files.js";
import { checkFlags, type PartialConfig } from "../config/load/load.js";
import { homeFolder, userConfigFile } from "../config/load/paths.js";
import { unusableFile } from "../config/problem.js";
import { DEFAULT_MODEL } from "../config/schema.js";
import { isVariable } from "../config/secret.js";
import { type Detected, KEY_VARIABLES } from "../providers/detect.js";
import { readProjectFile, type TrustView, trustFile } from "./trust.js";
import { withTrialFleet } from "./versions.js";

export const SOURCES = ["github", "openai", "azure", "anthropic", "ollama", "echo"] as const;
/** A source of models that `init` offers. The configuration has no type `ollama`: Ollama is set up as type `openai`. */
export type Source = (typeof SOURCES)[number];

/** The settings that only some sources need. */
export type Field = "baseUrl" | "apiKeyEnv" | "model" | "tokenEnv";

/**
 * The answers that a person gave, or the values of flags. If `tokenEnv` is null, the token comes from the login of
 * `gh`.
 */
export interface Answers extends Partial<Record<Field, string | null | undefined>> {
  source: Source;
  isolation: "per-user" | "shared";
}

export interface Question {
  field: Field;
  /** The name of the flag that answers the question. */
  flag: string;
  text: string;
  /** The default answer. Null: the person may leave the question open. Undefined: the person has to answer. */
  initial: string | null | undefined;
}

const OPENAI_URL = "https://api.openai.com/v1";
const ANTHROPIC_URL = "https://api.anthropic.com";

export const FIELD_FLAGS: Readonly<Record<Field, string>> = {
  baseUrl: "--base-url",
  apiKeyEnv: "--api-key-env",
  model: "--model",
  tokenEnv: "--token-env",
};

/** The answers that each source needs or accepts, in the order of the questions. */
export const FIELDS: Readonly<Record<Source, readonly Field[]>> = {
  github: ["tokenEnv", "model"],
  openai: ["baseUrl", "apiKeyEnv", "model"],
  azure: ["baseUrl", "apiKeyEnv", "model"],
  anthropic: ["baseUrl", "apiKeyEnv", "model"],
  ollama: ["baseUrl", "model"],
  echo: [],
};

/** The next question that has no answer; undefined if all questions have answers. */
export function nextQuestion(answers: Answers, detected: Detected): Question | undefined {
  const field = FIELDS[answers.source].find((each) => answers[each] === undefined);
  if (field === undefined) return undefined;
  const initial = initialOf(field, answers, detected);
  const text = initial === null ? `${TEXTS[field]} [${NO_ANSWER[field]}]` : TEXTS[field];
  return { field, flag: FIELD_FLAGS[field], text, initial };
}

const TEXTS: Readonly<Record<Field, string>> = {
  baseUrl: "URL of the service",
  apiKeyEnv: "Name of the variable that contains the service's key",
  model: "Model",
  tokenEnv: "Name of the variable that contains your GitHub token",
};

/** The meaning of an empty answer. */
const NO_ANSWER: Readonly<Record<Field, string>> = {
  baseUrl: "none",
  apiKeyEnv: "no key",
  model: "chosen by the account",
  tokenEnv: "the login of gh",
};

function initialOf(field: Field, { source, baseUrl }: Answers, detected: Detected): string | null | undefined {
  switch (field) {
    case "tokenEnv":
      return detected.tokenVariable ?? (detected.hasGhLogin ? null : undefined);
    case "baseUrl":
      if (source === "ollama") return detected.ollama?.baseUrl ?? "http://127.0.0.1:11434/v1";
      return source === "openai" ? OPENAI_URL : source === "anthropic" ? ANTHROPIC_URL : undefined;
    case "apiKeyEnv":
      if (source === "azure") return KEY_VARIABLES.azure;
      // Do not offer a vendor's key to another service.
      if (source === "openai" && baseUrl === OPENAI_URL) return KEY_VARIABLES.openai;
      return source === "anthropic" && baseUrl === ANTHROPIC_URL ? KEY_VARIABLES.anthropic : null;
    case "model":
      // Without a model in the settings, the runtime chooses one of the account's models.
      if (source === "github") return null;
      if (source === "ollama") return detected.ollama?.models[0];
      return source === "openai" && baseUrl === OPENAI_URL ? DEFAULT_MODEL : undefined;
  }
}

interface SourceOffer {
  source: Source;
  title: string;
  /** The reason to expect that the source works on this machine; null if nothing suggests that. */
  found: string | null;
}

/** Returns all sources, with those that were found on this machine first. */
export function offers({ tokenVariable, hasGhLogin, keyVariables, ollama }: Detected): SourceOffer[] {
  const key = (name: string) => (keyVariables.includes(name) ? `${name} is set` : null);
  const login = hasGhLogin ? "gh is logged in" : null;
  const all: SourceOffer[] = [
    {
      source: "github",
      title: "GitHub's models, for an account with Copilot",
      found: tokenVariable === null ? login : `${tokenVariable} is set`,
    },
    { source: "openai", title: "OpenAI, or a service with the same protocol", found: key(KEY_VARIABLES.openai) },
    { source: "azure", title: "Azure OpenAI", found: key(KEY_VARIABLES.azure) },
    { source: "anthropic", title: "Anthropic", found: key(KEY_VARIABLES.anthropic) },
    {
      source: "ollama",
      title: "Ollama, on your own machine",
      found: ollama === null || ollama.models.length === 0 ? null : `it has ${ollama.models.join(", ")}`,
    },
    { source: "echo", title: "the built-in echo model, for trials: no account, no network", found: null },
  ];
  return [...all.filter(({ found }) => found !== null), ...all.filter(({ found }) => found === null)];
}

/** The source that `--yes` chooses: the first one that was found on this machine, or else the echo model. */
export function usualSource(detected: Detected): Source {
  const [first] = offers(detected);
  return first === undefined || first.found === null ? "echo" : first.source;
}

/** The settings as the file contains them. Leaves out defaults, because some of them need the user's trust. */
export function settingsOf(answers: Answers): PartialConfig {
  const { source, baseUrl, apiKeyEnv, model, tokenEnv, isolation } = answers;
  return {
    ...(isolation === "shared" ? { isolation } : {}),
    ...(source === "github"
      ? // Set the provider to null, because a provider in the user's own file must not get these prompts.
        {
          auth: { githubToken: tokenEnv == null ? { command: "gh auth token" } : { env: tokenEnv } },
          provider: null,
        }
      : {
          provider: {
            type: source === "ollama" ? "openai" : source,
            ...(baseUrl == null ? {} : { baseUrl }),
            ...(apiKeyEnv == null ? {} : { apiKey: { env: apiKeyEnv } }),
          },
        }),
    ...(model == null ? {} : { session: { model } }),
  };
}

interface InitOptions {
  env: NodeJS.ProcessEnv;
  cwd: string;
  /** Write the user's own file instead of the project's. */
  userConfig: boolean;
  /** Replace an existing file. */
  force: boolean;
}

interface InitTarget {
  path: string;
  kind: "project" | "user";
  force: boolean;
}

export interface Written {
  path: string;
  /** The trust that was recorded for the file; null if the file needs no trust. */
  trusted: TrustView | null;
  /** Variables that take precedence over a value in the file. */
  overriddenBy: string[];
  /**
   * The nearest project file in a folder above. It applied in this folder until the new file was written. Null if there
   * is none.
   */
  replaces: string | null;
}

const PROMPT = "Say hello in one short sentence.";
const TRIAL_MS = 60_000;
const FLAG_NAMES = {
  "auth.githubToken": FIELD_FLAGS.tokenEnv,
  "provider.baseUrl": FIELD_FLAGS.baseUrl,
  "provider.apiKey": FIELD_FLAGS.apiKeyEnv,
  "session.model": FIELD_FLAGS.model,
};

/** Returns the file to write. Refuses a file that exists, unless the caller wants to replace it. */
export function initTarget({ env, cwd, userConfig, force }: InitOptions): InitTarget {
  const path = userConfig ? userConfigFile(env) : join(cwd, PROJECT_FILE);
  const target: InitTarget = { path, kind: userConfig ? "user" : "project", force };
  if (!force && existsSync(path)) throw exists(target);
  return target;
}

/**
 * Refuses settings that are not allowed. The message names the flag.
 *
 * @param asked the field that a person has just answered, so that the message names the answer and not the flag
 */
export function checkSettings(settings: PartialConfig, asked?: Field): void {
  const isAsked = (flag: string) => asked !== undefined && flag === FIELD_FLAGS[asked];
  for (const [field, reference] of [
    ["tokenEnv", settings.auth?.githubToken],
    ["apiKeyEnv", settings.provider?.apiKey],
  ] as const) {
    if (reference == null || !("env" in reference) || isVariable(reference.env.replaceAll("{user}", "u"))) continue;
    const flag = FIELD_FLAGS[field];
    const message = `${isAsked(flag) ? "Your answer" : `The value of ${flag}`} ${NOT_A_VARIABLE}. Allowed: letters, digits and _`;
    throw new FleetError("FLEET_USAGE_INVALID", message, {
      suggestions: [`Give the name of the variable, not its value, such as ${flag} OPENAI_API_KEY.`],
    });
  }
  const names = Object.entries(FLAG_NAMES).map(([key, flag]) => [key, isAsked(flag) ? "Your answer" : flag]);
  checkFlags(settings, Object.fromEntries(names) as Record<string, string>);
}

/** The models that the chosen service lists, as far as the configuration may name them; empty if it lists none. */
export async function listedModels(settings: PartialConfig, env: NodeJS.ProcessEnv): Promise<string[]> {
  const { type, baseUrl, apiKey } = settings.provider ?? {};
  // Azure lists models, and a configuration names deployments.
  if (baseUrl == null || (type !== "openai" && type !== "anthropic")) return [];
  const { listModels } = await import("./doctor/settings.js");
  const key = apiKey != null && "env" in apiKey ? env[apiKey.env] : undefined;
  const list = await listModels({ type, baseUrl, bearer: false }, key || null);
  return (list.status === null ? [] : (list.models ?? [])).filter((model) => {
    try {
      checkSettings({ ...settings, session: { model } });
      return true;
    } catch {
      return false;
    }
  });
}

/** Warns of a model that the service does not list. Null if it lists the model, or no models at all. */
export async function unlistedModel(settings: PartialConfig, env: NodeJS.ProcessEnv): Promise<string | null> {
  const model = settings.session?.model;
  const models = typeof model === "string" ? await listedModels(settings, env) : [];
  if (models.length === 0 || models.includes(`${model}`)) return null;
  const { someOf } = await import("./doctor/settings.js");
  return `${quote(settings.provider?.baseUrl)} does not list the model ${quote(model)}. It lists ${someOf(models)}.`;
}

/** Sends one prompt on a temporary fleet with these settings, and returns the reply. */
export async function tryPrompt(settings: PartialConfig, env: NodeJS.ProcessEnv, signal: AbortSignal): Promise<string> {
  return await withTrialFleet({ env: withoutSettings(env), config: settings }, async (fleet) => {
    const session = await fleet.sessions.create({ user: "init", ephemeral: true, signal });
    const { text } = await fleet.sessions.send(session, PROMPT, { timeout: TRIAL_MS, signal });
    return text;
  }).catch((error: unknown) => {
    throw isFleetError(error) ? withoutSession(error) : error;
  });
}

/** Removes what is about the temporary fleet: commands, and the id of the session in the error of a timeout. */
function withoutSession(error: FleetError): FleetError {
  return error.reworded(({ message, suggestions }) => ({
    message: message.replace(/^Session \S+ did not finish its turn/, "The prompt was not answered"),
    suggestions:
      error.code === "FLEET_TURN_TIMEOUT" ? [] : suggestions.filter((step) => !step.startsWith("copilotfleet ")),
  }));
}

/** Writes the complete file or nothing, and trusts it if it is a project file with guarded keys. */
export async function writeSettings(
  target: InitTarget,
  settings: PartialConfig,
  schema: string,
  options: InitOptions,
): Promise<Written> {
  const { path, kind } = target;
  const { env, cwd } = options;
  const above = kind === "project" ? findProjectFile(dirname(cwd)) : null;
  // Read the variables first, so that an invalid variable fails before anything is written.
  const given = [...environmentLayer(env, { folder: cwd, home: homeFolder(env) })];
  const overriding = given.filter(([name]) => isSet(settings, name));
  writeWhole(target, `${JSON.stringify({ $schema: schema, ...settings }, null, 2)}\n`);
  return {
    path,
    trusted: kind === "project" ? await trust(path, options) : null,
    overriddenBy: overriding.map(([, { origin }]) => origin.name),
    replaces: above,
  };
}

/** Whether the settings set this dotted name. A section that is null sets every name in it. */
function isSet(settings: PartialConfig, name: string): boolean {
  let value: unknown = settings;
  for (const part of name.split(".")) {
    if (typeof value !== "object" || value === null) return value === null;
    value = (value as Record<string, unknown>)[part];
    if (value === undefined) return false;
  }
  return true;
}

async function trust(path: string, options: InitOptions): Promise<TrustView | null> {
  const file = readProjectFile(path, options);
  return Object.keys(file.sets).length === 0 ? null : await trustFile(file, options);
}

/**
 * Writes the file under a temporary name and then moves it into place, so that nobody can read half of it. A user's own
 * file may later contain a store's password, so only the user can read it.
 */
function writeWhole(target: InitTarget, text: string): void {
  const { path, kind, force } = target;
  const temporary = `${path}.${randomUUID().slice(0, 8)}.tmp`;
  try {
    if (kind === "user") mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    writeFileSync(temporary, text, { mode: kind === "user" ? 0o600 : 0o644, flag: "wx" });
    if (force) renameSync(temporary, path);
    // A link fails if another process has created the file since the check.
    else linkSync(temporary, path);
  } catch (error) {
    if (systemCode(error) === "EEXIST") throw exists(target);
    const reason = systemCode(error);
    if (reason === undefined) throw error;
    throw unusableFile(path, `cannot be written: ${reason}`, [`ls -ld ${shellQuote(printable(dirname(path)))}`], error);
  } finally {
    rmSync(temporary, { force: true });
  }
}

/** Adds to the error of a failed prompt that no file was written. */
export function withoutFile(error: FleetError): FleetError {
  return error.reworded(({ message, suggestions }) => ({
    message: `${asSentence(message)} No file was written.`,
    suggestions: [...suggestions, "Add --no-try to write the file without trying a prompt."],
  }));
}

function exists({ path, kind }: InitTarget): FleetError {
  const again = `copilotfleet init ${kind === "user" ? "--user-config " : ""}--force # replaces it` as const;
  return new FleetError("FLEET_TARGET_EXISTS", `${printable(path)} already exists, so nothing was written.`, {
    suggestions: [`cat ${shellQuote(printable(path))}`, again],
  });
}

/**
 * The address of the JSON Schema, for editors: in the project if copilotfleet is installed there, or else on the web.
 */
export function schemaAddress(folder: string, version: string): string {
  const installed = "node_modules/copilotfleet/schemas/config.json";
  if (existsSync(join(folder, installed))) return `./${installed}`;
  return `https://unpkg.com/copilotfleet@${version}/schemas/config.json`;
}
