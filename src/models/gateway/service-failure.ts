import type { RemoteProvider } from "../../config/schema.js";
import { isObject, parseObject } from "../../config/values/json.js";
import { asSentence, redactTokens } from "../../config/values/text.js";
import { quote, quoteUpTo, systemCode } from "../../errors.js";
import { reachProblem } from "../../runtime/launch/reach.js";
import { keySettingOf, keySourceOf, nameOfKeySource } from "../provider-key.js";

/** How much of a service's words a message quotes, in characters. */
const LONGEST_WORDS = 300;

export interface Failure {
  /** At least 400. */
  status: number;
  body: string;
  /** The model that the request asked for; null if it is unknown. */
  model: string | null;
  /** Null if the service needs none. */
  key: string | null;
}

/** Describes failures of one model service with its own address and words, and with the settings of the fleet. */
export class FailureReport {
  readonly #url: string;
  readonly #key: string;
  /** Texts that no message may contain: the parts of the URL that servers do not get. */
  readonly #secrets: readonly string[];

  constructor(provider: RemoteProvider) {
    const { origin, pathname, searchParams, password } = new URL(provider.baseUrl);
    this.#url = `${origin}${pathname.replace(/\/+$/, "")}`;
    this.#secrets = [...searchParams.values(), password].filter((secret) => secret !== "");
    const source = keySourceOf(provider);
    this.#key =
      source === null
        ? "a request without a key (provider.apiKeyEnv)"
        : `the key in ${nameOfKeySource(source)} (${keySettingOf(source)})`;
  }

  get waiting(): string {
    return `${this.#url} (provider.baseUrl) has not answered so far.`;
  }

  silent(silenceMs: number): string {
    return `${this.#url} (provider.baseUrl) has not answered within ${silenceMs / 1_000} s.`;
  }

  answered({ status, body, model, key }: Failure): string {
    const words = this.#withoutSecrets(wordsIn(body), key);
    const end = words === "" ? "." : `: ${quoteUpTo(LONGEST_WORDS, words)}.`;
    return `${this.#url} ${this.#deed(status, model)}, status ${status}${end}`;
  }

  #deed(status: number, model: string | null): string {
    if (status === 401) return `refused ${this.#key}`;
    if (status === 403) return `refused access with ${this.#key}`;
    if (status === 404) {
      const which = model === null ? "the model" : `the model ${quote(model)}`;
      return `does not have ${which} (session.model) or the address (provider.baseUrl)`;
    }
    if (status === 429) return `limits the use of ${this.#key}`;
    return status >= 500 ? "failed" : "refused the request";
  }

  /** @returns the status for the server. The runtime tries again after 5xx. */
  unreached(error: unknown): [status: number, message: string] {
    const code = systemCode(error) ?? "";
    const reason = this.#withoutSecrets(reachProblem(error), null);
    const start = `${this.#url} (provider.baseUrl) cannot be`;
    if (code === "EPROTO") return [422, `${start} reached: it does not speak TLS. Try http:// instead of https://.`];
    if (!/CERT|UNABLE_TO_VERIFY/.test(code)) return [502, `${start} reached: ${asSentence(reason)}`];
    const authority = "Name the file of its certificate authority in the variable SSL_CERT_FILE";
    return [422, `${start} trusted: ${reason} (${code}). ${authority} or NODE_EXTRA_CA_CERTS.`];
  }

  /** Hides the secrets, and each word that has a part of the key, because services quote the key that they refuse. */
  #withoutSecrets(text: string, key: string | null): string {
    const plain = this.#secrets.reduce((left, secret) => left.replaceAll(secret, "***"), redactTokens(text));
    return plain.replace(/[^\s"'`<>(),;:]+/g, (word) => (quotesKey(word, key) ? "***" : word));
  }
}

/** How long a part of a key is at least that a message must not contain, in characters. */
const KEY_PART = 5;

function quotesKey(word: string, key: string | null): boolean {
  if (/\*\*|\w(?:\.{3}|…)\w/.test(word)) return true;
  if (key === null) return false;
  if (word.includes(key) || word.replace(/\.$/, "").endsWith(key.slice(-4))) return true;
  for (let at = 0; at + KEY_PART <= key.length; at++) if (word.includes(key.slice(at, at + KEY_PART))) return true;
  return false;
}

/** The text for people in the body of an error, in one line. */
function wordsIn(body: string): string {
  const { error, message, detail } = parseObject(body) ?? { message: body.replace(/<[^>]*>/g, " ") };
  const inner = isObject(error) ? error.message : error;
  const words = [inner, message, detail].find((each) => typeof each === "string") ?? "";
  return String(words).replace(/\s+/g, " ").trim();
}
