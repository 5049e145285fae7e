import { Flags } from "@oclif/core";
import { usage } from "./flags.js";

export const memberFlags = {
  collaborative: Flags.boolean({ description: "let members use the session, too, one at a time" }),
  member: Flags.string({
    description: "a user who may use the session; may be repeated",
    helpValue: "USER",
    multiple: true,
  }),
};

/** The members of a new session; undefined if it is private. */
export function membersOf(flags: { collaborative: boolean; member?: string[] | undefined }): string[] | undefined {
  if (flags.collaborative) return flags.member ?? [];
  if (flags.member === undefined) return undefined;
  throw usage("--member needs --collaborative.", [
    `copilotfleet create --user USER --collaborative${flags.member.map((id) => ` --member ${id}`).join("")}`,
  ]);
}
