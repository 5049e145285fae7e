import type { PartialConfig } from "../../config/load/load.js";
import { DEFAULT_MODEL } from "../../config/schema.js";
import { type Detected, KEY_VARIABLES } from "../../models/detect.js";

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

export interface SourceOffer {
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
          auth: tokenEnv == null ? { githubTokenCommand: "gh auth token" } : { githubTokenEnv: tokenEnv },
          provider: null,
        }
      : {
          provider: {
            type: source === "ollama" ? "openai" : source,
            ...(baseUrl == null ? {} : { baseUrl }),
            ...(apiKeyEnv == null ? {} : { apiKeyEnv }),
          },
        }),
    ...(model == null ? {} : { session: { model } }),
  };
}
