import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import {
  durationFlag,
  given,
  modelFlag,
  promptFlag,
  sessionIdFlag,
  titleFlag,
  ttlFlag,
  usage,
} from "../cli/flags/flags.js";
import { actingUserFlag } from "../cli/flags/user.js";
import { afterPrompt, whatBecameOf, withoutSession } from "../cli/prompt/failed-prompt.js";
import { createInterruptibly } from "../cli/prompt/interrupted-creation.js";
import { markPrompts, readPrompt } from "../cli/prompt/prompt.js";
import { printTurn } from "../cli/prompt/turn.js";
import { renderUntil } from "../cli/render/table.js";
import { isFleetError } from "../errors.js";
import { deadline } from "../runtime/clock.js";
import type { SessionView } from "../sessions/view.js";

/** How long a server may take to start and to create a session, in milliseconds. */
const CREATE_MS = 30_000;

export default class Create extends FleetCommand {
  static override summary = "Create a session for a user and print its id.";
  static override examples = [
    "<%= config.bin %> create --user alice",
    '<%= config.bin %> create --user alice --purpose review --prompt "Hello"',
  ];
  static override flags = {
    user: actingUserFlag,
    id: sessionIdFlag,
    purpose: Flags.string({ description: "purpose of the session", helpValue: "TEXT" }),
    title: titleFlag,
    model: modelFlag,
    prompt: promptFlag("first prompt to send; prints its reply after the id"),
    ephemeral: Flags.boolean({
      description: "delete the session after its first use: after --prompt, or otherwise after the first send",
    }),
    collaborative: Flags.boolean({ description: "let members use the session, too, one at a time" }),
    member: Flags.string({
      description: "a user who may use the session; may be repeated",
      helpValue: "USER",
      multiple: true,
    }),
    wait: durationFlag("wait", "how long to wait while session.maxActive sessions are loaded (default: 30s)"),
    ttl: ttlFlag,
  };

  async run(): Promise<{ session: SessionView; reply: string | null }> {
    const { flags } = await this.parse(Create, markPrompts(this.argv));
    if (flags.member !== undefined && !flags.collaborative)
      throw usage("--member needs --collaborative.", [
        `copilotfleet create --user USER --collaborative${flags.member.map((id) => ` --member ${id}`).join("")}`,
      ]);
    const { purpose, title, model, ttl } = flags;
    const members = flags.collaborative ? (flags.member ?? []) : undefined;
    const prompt = flags.prompt === undefined ? undefined : await readPrompt(flags.prompt);
    return await this.withFleet(async (fleet) => {
      const signal = this.interruptSignal();
      using _ = this.progress("Creating the session", signal);
      using limit = deadline(CREATE_MS, signal);
      const creating = createInterruptibly(fleet, { user: flags.user, signal }, async () =>
        fleet.sessions.create({
          user: flags.user,
          ephemeral: flags.ephemeral,
          needsModel: prompt !== undefined,
          signal: limit.signal,
          ...given({ sessionId: flags.id, purpose, title, model, ttl, members, waitMs: flags.wait }),
        }),
      );
      const session = await (prompt === undefined ? creating : creating.catch(withoutSession));
      this.log(session.sessionId);
      const { ephemeral } = flags;
      const leave = async (options = {}) => {
        const view = await fleet.sessions.leave(session, options);
        const until = view.state === "gone" ? null : renderUntil(view.expiresAt);
        if (until !== null && process.stdout.isTTY === true && !this.jsonEnabled())
          process.stderr.write(`If nobody uses this session, it expires ${until}.\n`);
        return view;
      };
      if (prompt === undefined) return { session: await leave({ park: true }), reply: null };
      const output = { json: this.jsonEnabled(), signal, isEphemeral: ephemeral };
      try {
        const { text } = await printTurn(output, session.sessionId, (options) =>
          fleet.sessions.send(session, prompt, options),
        );
        return { session: await leave(), reply: text };
      } catch (error) {
        if (!isFleetError(error)) throw error;
        throw afterPrompt(error, await whatBecameOf(fleet, session.sessionId, flags));
      }
    });
  }
}
