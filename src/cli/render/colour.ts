import { Chalk, type ColorSupportLevel, default as detected } from "chalk";

/** Styles text, if the user wants colours. chalk checks the terminal and FORCE_COLOR, and `level` checks NO_COLOR. */
export const colour = new Chalk({ level: level(process.env, process.argv) });

/** Follows https://no-color.org and https://bixense.com/clicolors. NO_COLOR and --no-color win over CLICOLOR_FORCE. */
function level({ NO_COLOR, CLICOLOR_FORCE }: NodeJS.ProcessEnv, argv: readonly string[]): ColorSupportLevel {
  const end = argv.indexOf("--");
  const isRefused = argv.slice(0, end === -1 ? undefined : end).includes("--no-color");
  if (isRefused || (NO_COLOR !== undefined && NO_COLOR !== "")) return 0;
  const isForced = CLICOLOR_FORCE !== undefined && CLICOLOR_FORCE !== "" && CLICOLOR_FORCE !== "0";
  return isForced && detected.level === 0 ? 1 : detected.level;
}
