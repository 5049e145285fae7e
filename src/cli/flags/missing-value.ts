import type { Interfaces } from "@oclif/core";
import { isFleetError, type Suggestion } from "../../errors.js";

/** A flag as a command defines it. */
type Definition = Partial<Pick<Interfaces.OptionFlag<unknown>, "helpValue" | "options">> & {
  parse?: unknown;
  /** A usual value. */
  example?: string;
};

/** The allowed values of flags that accept any text, by the `helpValue` of the flag. */
const KINDS: Readonly<Record<string, string>> = {
  DIR: "the path of a folder, such as ./deploy",
  FILE: "the path of a new file, such as ./session.tar.gz",
  HOST: 'the name of a host, such as "host-1" ("copilotfleet ps --output wide" shows the names)',
  MODEL: "the name of a model, such as gpt-5",
  PATH: "the path of a file, such as ./.copilotfleet.json",
  STORE: 'the store "file", or the URL of a Redis, such as redis://127.0.0.1:6379/0',
  TEXT: 'a text, in quotes if it has spaces, such as "review"',
  TOKEN: 'the token that "copilotfleet lock" printed',
  USER: "the id of a user, such as alice",
  URL: "a URL, such as https://api.openai.com/v1",
  VAR: "the name of an environment variable",
};

/** The allowed values of particular flags. They take precedence over {@link KINDS}. */
const FILES: Readonly<Record<string, string>> = {
  "--config": "the path of a configuration file, such as ./.copilotfleet.json",
  "--token-file": "the path of a file that only you can read, such as ./token",
  "--ca-key": "the path of a file that only you can read, such as ./fleet-ca.pem",
  "--ca": "the path of a file with certificates, such as ./ca.crt",
  "--cert": "the path of a file with a certificate, such as ./client.crt",
  "--key": "the path of a file that only you can read, such as ./client.key",
  "--listen": "an address of this machine, such as 127.0.0.1:4300",
  "--http": "an address of this machine, such as 127.0.0.1:4380",
  "--metrics": "an address of this machine, such as 127.0.0.1:9464",
};

/**
 * Returns the message and the advice for a flag that was given without a value. They name the same allowed values as
 * the error for a wrong value.
 */
export async function missingValue(
  flag: string,
  definition: Definition = {},
): Promise<{ message: string; advice: Suggestion[] }> {
  const options = definition.options?.join(", ").replace(/, (?=[^,]*$)/, " or ");
  const found = options === undefined ? await refusedBy(flag, definition) : { allowed: options, advice: "" };
  const { example: usual } = definition;
  const allowed = usual === undefined ? found.allowed : `${found.allowed}, such as ${usual}`;
  const message = `${flag} needs a value.${allowed === "" ? "" : ` Allowed: ${allowed}`}`;
  const [, advised] = /(?:such as|write) (?:--\S+ )?"?([^\s"]+?)"?\.$/.exec(found.advice) ?? [];
  const example = usual ?? advised ?? exampleIn(allowed);
  const { helpValue = "VALUE" } = definition;
  return {
    message,
    advice: [example === undefined ? `Write ${flag} ${helpValue}.` : `For example, write ${flag} ${example}.`],
  };
}

/** Reads the allowed values from the error with which the flag refuses an empty value, or else from FILES or KINDS. */
async function refusedBy(
  flag: string,
  { parse, helpValue = "" }: Definition,
): Promise<{ allowed: string; advice: string }> {
  try {
    if (typeof parse === "function") await parse("", {}, {});
  } catch (error) {
    if (!isFleetError(error)) throw error;
    const { message, suggestions } = error.describe((name) => name);
    const [, allowed] = /\bAllowed: (.+?)\.?$/s.exec(message) ?? [];
    if (allowed !== undefined) return { allowed, advice: suggestions[0] ?? "" };
  }
  return { allowed: FILES[flag] ?? KINDS[String(helpValue)] ?? "", advice: "" };
}

/** Finds an allowed value in the text after "Allowed:"; undefined if the text names none. */
function exampleIn(allowed: string): string | undefined {
  const [, named] = /such as "?([^\s",]+)/.exec(allowed) ?? [];
  if (named !== undefined) return named.replace(/[.)]+$/, "");
  const [, least] = /from (\d+) to/.exec(allowed) ?? [];
  if (least !== undefined) return String(Math.max(Number(least), 1));
  return /^([\w-]+)(?:, | or )/.exec(allowed)?.[1];
}
