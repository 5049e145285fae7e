import { Flags } from "@oclif/core";
import { isFleetError } from "../../base/errors.js";
import type { Isolation } from "../../base/server.js";
import type { PartialConfig } from "../../config/load/load.js";
import { DEFAULT_MODEL } from "../../config/schema.js";
import {
  type Answers,
  checkSettings,
  FIELD_FLAGS,
  FIELDS,
  type Field,
  initTarget,
  listedModels,
  nextQuestion,
  offers,
  type Question,
  SOURCES,
  type Source,
  schemaAddress,
  settingsOf,
  tryPrompt,
  unlistedModel,
  usualSource,
  type Written,
  withoutFile,
  writeSettings,
} from "../../fleet/init.js";
import { type Detected, detectModels } from "../../providers/detect.js";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../base-command.js";
import { choiceFlag, usage, variableFlag } from "../flags/flags.js";
import { confirm, Interview, isAsked } from "../prompt.js";
import { renderWritten } from "../render/results.js";
import { errorText } from "../report.js";

const text = (description: string, helpValue: string) => Flags.string({ description, helpValue });

const initFlags = {
  provider: choiceFlag("provider", "source of the models", SOURCES),
  "base-url": text("URL of the model service", "URL"),
  "api-key-env": variableFlag("variable that contains the key of the model service"),
  "token-env": variableFlag("variable that contains the GitHub token (default: the login of gh)"),
  model: text("model of sessions that name none", "MODEL"),
  isolation: choiceFlag("isolation", "whether users share servers (default: per-user)", ["per-user", "shared"]),
  yes: Flags.boolean({
    char: "y",
    description: "ask nothing: take the first source that is found, and the usual answers",
  }),
  force: Flags.boolean({ description: "replace an existing file" }),
  "user-config": Flags.boolean({ description: "write your own configuration file instead of the project's" }),
  "no-try": Flags.boolean({ description: "do not try a prompt before writing" }),
};

interface Initialized extends Written {
  /** The reply to the trial prompt; null if there was none, or if it failed and the user wanted the file anyway. */
  reply: string | null;
}

export default class Init extends FleetCommand {
  static override summary = "Choose the models, try a prompt, and write the configuration file.";
  static override description =
    "Asks on a terminal. Elsewhere, needs --provider or --yes, and takes the usual answers for the rest. Looks for a login " +
    "of gh, for keys by the names of their variables, and for Ollama. Writes no key or token. If the prompt fails, writes " +
    "the file only if you agree.";
  static override examples = [
    "<%= config.bin %> init",
    "<%= config.bin %> init --provider echo",
    "<%= config.bin %> init --provider openai --base-url https://models.example/v1 --api-key-env MODELS_KEY --model m-1",
  ];
  static override baseFlags = FLAGS_WITHOUT_CONFIG;
  static override flags = initFlags;

  async run(): Promise<Initialized> {
    const { flags } = await this.parse(Init);
    const { yes, force, provider: source, isolation, "no-try": noTry } = flags;
    const options = { env: process.env, cwd: process.cwd(), userConfig: flags["user-config"], force };
    const target = initTarget(options);
    const asks = isAsked({ json: this.jsonEnabled(), yes });
    const settings = await this.#ask({ source, isolation, fields: fieldsIn(flags), yes, noTry }, asks);
    if (source === undefined && !asks && settings.provider?.type === "echo")
      this.log("No key or login was found, so this is the built-in echo model.");
    const reply = noTry ? null : await this.#try(settings, asks);
    const schema = schemaAddress(options.cwd, this.config.version);
    const written = await writeSettings(target, settings, schema, options);
    this.log(renderWritten(written, reply));
    return { ...written, reply };
  }

  async #ask(flags: InitFlags, asks: boolean): Promise<PartialConfig> {
    // While the interview is open, the terminal sends no signal for Ctrl-C. So close the interview before trying the
    // prompt.
    using interview = asks ? new Interview() : null;
    return settingsOf(await answersFor(flags, process.env, interview));
  }

  /** Tries one prompt. If it fails and the user may be asked, resolves with null if the user wants the file anyway. */
  async #try(settings: PartialConfig, asks: boolean): Promise<string | null> {
    const signal = this.interruptSignal({ cleansUp: true });
    try {
      const warning = await unlistedModel(settings, process.env);
      if (warning !== null) process.stderr.write(`Warning: ${warning}\n`);
      using _ = this.progress("Trying a prompt");
      return await tryPrompt(settings, process.env, signal);
    } catch (error) {
      if (!isFleetError(error) || signal.aborted) throw error;
      if (!asks) throw withoutFile(error);
      process.stderr.write(`${errorText(error)}\n`);
      await confirm("The prompt failed. Write the file anyway?");
      return null;
    }
  }
}

/** Returns the answers that the flags give to questions of `init`. */
function fieldsIn(flags: Readonly<Record<string, unknown>>): Partial<Record<Field, string>> {
  const entries = Object.entries(FIELD_FLAGS).map(([field, flag]) => [field, flags[flag.slice("--".length)]]);
  return Object.fromEntries(entries.filter(([, value]) => value !== undefined)) as Partial<Record<Field, string>>;
}

/** The answers that the flags give. */
interface InitFlags {
  source: Source | undefined;
  isolation: Isolation | undefined;
  fields: Partial<Record<Field, string>>;
  /** Take the usual answers instead of asking. */
  yes: boolean;
  /** Do not ask the service for its models. */
  noTry: boolean;
}

/** Completes the answers that the flags give: asks for the rest, or takes the usual answers if `interview` is null. */
async function answersFor(flags: InitFlags, env: NodeJS.ProcessEnv, interview: Interview | null): Promise<Answers> {
  if (flags.source === undefined && interview === null && !flags.yes) {
    throw usage("--provider is missing, and this is not a terminal where init could ask for it.", [
      "copilotfleet init --provider echo",
      "copilotfleet init --yes # takes the first source of models that is found",
    ]);
  }
  if (flags.source !== undefined) refuseOthers(flags.source, flags.fields);
  refuseWrong(flags);
  const isComplete =
    flags.source !== undefined && FIELDS[flags.source].every((field) => flags.fields[field] !== undefined);
  const detected = isComplete ? NOTHING : await detectModels(env);
  const source = flags.source ?? (await interview?.choose(...sourceQuestion(detected))) ?? usualSource(detected);
  refuseOthers(source, flags.fields);
  const answers: Answers = { source, isolation: flags.isolation ?? "per-user", ...flags.fields };
  const missing: string[] = [];
  for (let next = nextQuestion(answers, detected); next !== undefined; next = nextQuestion(answers, detected)) {
    const listsModels = next.field === "model" && !flags.noTry;
    const models = listsModels ? await listedModels(settingsOf(answers), env) : [];
    const usual = [next.initial, DEFAULT_MODEL].find((each) => each != null && models.includes(each)) ?? models[0];
    const question = { ...next, initial: usual ?? next.initial };
    answers[next.field] =
      interview === null ? (question.initial ?? null) : await ask(question, models, { answers, env, interview });
    if (interview === null && question.initial === undefined) missing.push(next.flag);
  }
  if (missing.length > 0) {
    const are = missing.length === 1 ? "is" : "are";
    throw usage(`${missing.join(" and ")} ${are} missing for --provider ${source}.`, ["copilotfleet init --help"]);
  }
  checkSettings(settingsOf(answers));
  if (interview !== null && flags.isolation === undefined) answers.isolation = await interview.choose(...ISOLATION);
  return answers;
}

const NOTHING: Detected = { tokenVariable: null, hasGhLogin: false, keyVariables: [], ollama: null };

const ISOLATION: Parameters<typeof Interview.prototype.choose<Isolation>> = [
  "How do users get servers?",
  [
    { value: "per-user", title: "each user gets their own server" },
    { value: "shared", title: "users share servers" },
  ],
];

function sourceQuestion(detected: Detected): Parameters<typeof Interview.prototype.choose<Source>> {
  const choices = offers(detected).map(({ source, title, found }) => ({
    value: source,
    title: found === null ? title : `${title} (${found})`,
  }));
  return ["Which models do you want to use?", choices];
}

/** A valid URL with which to check the other flags if no flag gives the URL of the service. */
const SOME_URL = "https://models.example/v1";

/** Refuses wrong flags before the first question. Otherwise, init would refuse every answer because of a wrong flag. */
function refuseWrong({ source, fields: { tokenEnv, ...service } }: InitFlags): void {
  const isolation = "per-user";
  if (tokenEnv !== undefined) checkSettings(settingsOf({ source: "github", isolation, tokenEnv }));
  const takesUrl = source !== undefined && FIELDS[source].includes("baseUrl");
  checkSettings(settingsOf({ source: takesUrl ? source : "openai", isolation, baseUrl: SOME_URL, ...service }));
}

function refuseOthers(source: Source, fields: InitFlags["fields"]): void {
  const known: readonly string[] = FIELDS[source];
  const others = Object.keys(fields).filter((field) => !known.includes(field));
  const flags = others.map((field) => FIELD_FLAGS[field as Field]);
  if (flags.length > 0) throw usage(`${flags.join(" and ")} cannot be used with --provider ${source}.`);
}

interface Asking {
  answers: Answers;
  env: NodeJS.ProcessEnv;
  interview: Interview;
}

/** How many models to show to choose from by number. */
const MOST_MODELS = 20;

/** @param models the models to choose from. The person may also name another one. */
async function ask(
  { field, text, initial }: Question,
  models: readonly string[],
  { answers, env, interview }: Asking,
): Promise<string | null> {
  const shown = models.slice(0, MOST_MODELS);
  if (models.length > 0)
    interview.note(
      ["The service lists these models. Answer with a name or a number.", ...shown.map(numbered)].join("\n"),
    );
  if (models.length > shown.length) interview.note(`  and ${models.length - shown.length} more`);
  const answer = await interview.ask(text, initial ?? undefined, (given) => {
    if (given === "") return initial === null ? null : "An answer is needed.";
    return problemWith({ ...answers, [field]: given }, field);
  });
  if (isUnsetVariable(field, answer, env)) interview.note(`${answer} is not set in this shell.`);
  return answer === "" ? null : (shown[Number(answer) - 1] ?? answer);
}

const numbered = (name: string, at: number) => `  ${at + 1}. ${name}`;

/** Whether the answer names a variable that is not set. A pattern with `{user}` is not checked. */
function isUnsetVariable(field: Field, answer: string, env: NodeJS.ProcessEnv): boolean {
  if (field !== "apiKeyEnv" && field !== "tokenEnv") return false;
  return answer !== "" && !answer.includes("{user}") && (env[answer] ?? "") === "";
}

function problemWith(answers: Answers, asked: Field): string | null {
  try {
    checkSettings(settingsOf(answers), asked);
    return null;
  } catch (error) {
    if (isFleetError(error)) return error.message;
    throw error;
  }
}
