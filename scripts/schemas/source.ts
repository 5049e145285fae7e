import { join } from "node:path";
import ts from "typescript";
import { type JsonSchema, schemaOf } from "./json-schema.js";

const REPORT = "src/cli/report.ts";
const TABLE = "src/base/errors/table.ts";

export interface Outputs {
  /** The schema of each command's `--json` output, by the command's name. The key `error` has the schema of errors. */
  schemas: Record<string, JsonSchema>;
  /** The exit code of each error code. */
  exitCodes: Record<string, number>;
}

/**
 * Reads the types of the outputs from the source: the return type of each command's `run`, the type of a reported
 * error, and the table of errors.
 *
 * @param commands the names of the commands as a user types them, such as `token list`
 */
export function readOutputs(root: string, commands: readonly string[]): Outputs {
  const program = programOf(root, [REPORT, TABLE, ...commands.map(fileOf)]);
  const checker = program.getTypeChecker();
  const exportOf = (file: string, name: string): ts.Symbol => {
    const source = program.getSourceFile(join(root, file));
    const module = source && checker.getSymbolAtLocation(source);
    const found = module && checker.getExportsOfModule(module).find((symbol) => symbol.name === name);
    if (found === undefined) throw new Error(`${file} has no export ${name}.`);
    return found;
  };
  const resultOf = (command: string): ts.Type => {
    const instance = checker.getDeclaredTypeOfSymbol(exportOf(fileOf(command), "default"));
    const run = instance.getProperty("run");
    const [signature] = run === undefined ? [] : checker.getTypeOfSymbol(run).getCallSignatures();
    const result = signature && checker.getAwaitedType(signature.getReturnType());
    if (result === undefined) throw new Error(`${fileOf(command)} has no method run.`);
    return result;
  };
  const errors = checker.getTypeOfSymbol(exportOf(TABLE, "ERRORS")).getProperties();
  const exitOf = (error: ts.Symbol): number => {
    const exit = checker.getTypeOfSymbol(error).getProperty("exit");
    const type = exit && checker.getTypeOfSymbol(exit);
    if (type?.isNumberLiteral() !== true) throw new Error(`${error.name} has no exit code.`);
    return type.value;
  };
  const failure = checker.getDeclaredTypeOfSymbol(exportOf(REPORT, "Failure"));
  const results = commands.map(
    (command) => [command, schemaOf(`copilotfleet ${command} --json`, resultOf(command), checker)] as const,
  );
  return {
    schemas: { ...Object.fromEntries(results), error: schemaOf("A command with --json that fails", failure, checker) },
    exitCodes: Object.fromEntries(errors.map((error) => [error.name, exitOf(error)])),
  };
}

/**
 * Resolves only imports of our own files and of valibot, from which the types of the configuration come. No output
 * contains a type of another package, and reading all packages would take twice as long.
 */
function programOf(root: string, files: readonly string[]): ts.Program {
  const { config } = ts.readConfigFile(join(root, "tsconfig.json"), ts.sys.readFile);
  const options = { ...ts.parseJsonConfigFileContent(config, ts.sys, root).options, types: [] };
  const host = ts.createCompilerHost(options);
  host.resolveModuleNameLiterals = (names, from, _, to) =>
    names.map(({ text }) =>
      /^(\.|valibot$)/.test(text) ? ts.resolveModuleName(text, from, to, host) : { resolvedModule: undefined },
    );
  return ts.createProgram(
    files.map((file) => join(root, file)),
    options,
    host,
  );
}

function fileOf(command: string): string {
  return `src/cli/commands/${command.replaceAll(" ", "/")}.ts`;
}
