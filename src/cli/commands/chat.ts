import { Args } from "@oclif/core";
import { FleetCommand } from "../base-command.js";
import { doorFlags, doorFromFlags, warnOfPlainText } from "../flags/door.js";
import { actingUserFlagUnless, DEFAULT_USER, modelFlag, titleFlag, usage } from "../flags/flags.js";
import { sessionReference, wholeId } from "../flags/session.js";
import { assertCanChat } from "../prompt.js";

export default class Chat extends FleetCommand {
  static override summary = "Chat with the agent on a terminal, in a new session or in SESSION.";
  static override description =
    "/help lists the commands and keys of the chat. Ctrl-C cancels a turn, and Ctrl-D ends the chat. With --to, the chat " +
    "uses a front door, and the token identifies the user.";
  static override examples = [
    "<%= config.bin %> chat --user alice",
    "<%= config.bin %> chat SESSION --user alice",
    "<%= config.bin %> chat --to tls://fleet.example:4300 --token-env FLEET_TOKEN",
  ];
  static override args = {
    session: Args.string({
      description: "id of the session, or an unambiguous beginning of it (default: a new session)",
      ignoreStdin: true,
      parse: async (value) => sessionReference(value),
    }),
  };
  static override flags = { user: actingUserFlagUnless(["to"]), model: modelFlag, title: titleFlag, ...doorFlags };

  async run(): Promise<object> {
    const { args, flags } = await this.parse(Chat);
    const { user, model, to } = flags;
    if ((user === undefined) === (to === undefined)) {
      throw usage("Give either --user USER or --to HOST:PORT.", [DEFAULT_USER, "copilotfleet chat -h"]);
    }
    if (flags.title !== undefined && (args.session !== undefined || to !== undefined))
      throw usage("--title is for a new session of --user USER.", [
        `copilotfleet describe ${args.session ?? "SESSION"} --title TEXT`,
      ]);
    assertCanChat(this.jsonEnabled(), args.session, user);
    const door = await doorFromFlags(flags);
    if (door !== undefined) warnOfPlainText(door);
    const { chat } = await import("../chat/chat.js");
    await this.withFleet(async (fleet) => {
      const { session = null } = args;
      const request = { sessionId: session, model, title: flags.title, signal: this.interruptSignal() };
      if (door !== undefined) return await chat(fleet, { door }, request);
      if (user === undefined) return;
      const sessionId = session === null ? null : await wholeId(fleet, session, { user, json: false });
      await chat(fleet, { user }, { ...request, sessionId });
    });
    return {};
  }
}
