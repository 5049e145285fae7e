import { isFleetError } from "../../base/errors.js";
import type { PartialConfig } from "../../config/load/load.js";
import {
  initTarget,
  schemaAddress,
  settingsOf,
  tryPrompt,
  unlistedModel,
  type Written,
  withoutFile,
  writeSettings,
} from "../../fleet/init.js";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../base-command.js";
import { fieldsIn, initFlags } from "../flags/flags.js";
import { confirm, Interview, isAsked } from "../prompt.js";
import { renderWritten } from "../render/results.js";
import { errorText } from "../report.js";
import { answersFor, type InitFlags } from "../run/init.js";

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
