import type { RemoteProvider } from "../../config/schema.js";
import { parseObject } from "../../config/values/json.js";
import { quote, type Suggestion } from "../../errors.js";
import { type KeySource, nameOfKeySource } from "../../models/provider-key.js";
import { connectProblem } from "../../runtime/launch/reach.js";
import { type Finding, ok, warning } from "./checks.js";

export interface ServiceRequest {
  provider: RemoteProvider;
  /** Null for a service that needs no key. */
  key: KeySource | null;
  /** Null if there is no key, or if a command would have to print it. */
  apiKey: string | null;
  /** The model that sessions use by default. */
  model: string | null;
  /** The name of the environment variable that sets a proxy for HTTPS; undefined if servers use none. */
  proxy: string | undefined;
  quick: boolean;
}

const CONNECT_MS = 2_000;
const ANSWER_MS = 5_000;
/** The size of the largest list of models to read, in bytes. */
const LARGEST_LIST = 4 * 1024 * 1024;

/**
 * Asks the model service for its list of models. That costs nothing, and shows whether the service accepts the key. The
 * key is sent only to the address to which sessions send it.
 */
export async function serviceAnswers({ provider, key, apiKey, model, proxy, quick }: ServiceRequest): Promise<Finding> {
  const { type, baseUrl } = provider;
  const url = new URL(baseUrl);
  const isSecure = url.protocol === "https:";
  const service = `provider of type ${type} at ${url.host}`;
  if (quick) return ok(`${service}; not tried, because of --quick`);
  if (key?.from === "command") return ok(`${service}; not tried, because doctor does not run provider.apiKeyCommand`);
  if (isSecure && proxy !== undefined) return ok(`${service}; not tried, because servers reach it through ${proxy}`);
  const port = url.port === "" ? (isSecure ? 443 : 80) : Number(url.port);
  const problem = await connectProblem({ host: url.hostname.replace(/^\[|\]$/g, ""), port }, CONNECT_MS);
  const correct: Suggestion = `Start the service, or correct provider.baseUrl (${quote(baseUrl)}).`;
  if (problem !== null) return warning(`${service} cannot be reached: ${problem}`, correct);

  const list = await listModels(provider, apiKey);
  if (list.status === null) return warning(`${service} accepts connections, but did not answer: ${list.why}`, correct);
  const { status, models } = list;
  if (status === 401 || status === 403) {
    const refused = key === null ? "a request without a key" : `the key in ${nameOfKeySource(key)}`;
    const fix: Suggestion =
      key === null
        ? "Name the variable with the key in provider.apiKeyEnv."
        : `Put a valid key into ${nameOfKeySource(key)}.`;
    return warning(`${service} refuses ${refused} (status ${status})`, fix);
  }
  if (status === 429 || status >= 500) return warning(`${service} answers with status ${status}`);
  if (status === 404) {
    const detail = `${service} has no list of models at ${quote(baseUrl)} (status 404), so the key was not checked`;
    return warning(detail, "If prompts fail, correct provider.baseUrl. It often ends with /v1.");
  }
  if (status !== 200 || models === null) {
    return ok(`${service} answers; it does not list its models (status ${status}), so the key was not checked`);
  }
  const accepts = key === null ? "answers" : `accepts the key in ${nameOfKeySource(key)}`;
  // On Azure, the names cannot be compared: sessions name a deployment, and the list has the names of models.
  if (type === "azure" && model !== null) {
    return ok(
      `${service} ${accepts}; it does not list its deployments, so session.model ${quote(model)} was not checked`,
    );
  }
  if (model === null || models.includes(model)) return ok(`${service} ${accepts}`);
  const some = models.slice(0, 5).map(quote).join(", ");
  const has = models.length > 5 ? `${some} and ${models.length - 5} more` : some;
  return warning(
    `${service} ${accepts}, but does not list the model ${quote(model)}${has === "" ? "" : `; it has ${has}`}`,
    "Set session.model to a model of this service.",
  );
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
    const text = response.status === 200 ? await textOf(response) : "";
    if (response.status !== 200) await response.body?.cancel();
    return { status: response.status, models: modelsIn(text) };
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
