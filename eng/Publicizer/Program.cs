// Publicizer OUTPUT-FOLDER ASSEMBLY...
//
// Copies assemblies and makes the internal types and members of the copies public. The compiler gets the copies, so that
// the one file of ours that extends ML.NET's saved-model format can name ML.NET's internal types; nothing of the copies is
// shipped, and at run time IgnoresAccessChecksTo opens the real assemblies. Private members stay private.
//
// The access of a type or member is a three-bit field in its metadata row (ECMA-335 II.23.1), so a copy with those bits
// changed is a valid assembly: no rewriting, no other byte moves.

using System.Reflection;
using System.Reflection.Metadata;
using System.Reflection.Metadata.Ecma335;
using System.Reflection.PortableExecutable;

if (args.Length < 2)
{
    Console.Error.WriteLine("usage: Publicizer OUTPUT-FOLDER ASSEMBLY...");
    return 2;
}

Directory.CreateDirectory(args[0]);
foreach (var source in args.Skip(1))
{
    var image = File.ReadAllBytes(source);
    var changed = Publicize(image);
    var target = Path.Combine(args[0], Path.GetFileName(source));
    File.WriteAllBytes(target, image);
    Console.WriteLine($"{target}: {changed} members made public");
}
return 0;

static int Publicize(byte[] image)
{
    using var pe = new PEReader(new MemoryStream(image, writable: false));
    var metadata = pe.GetMetadataReader();
    var start = pe.PEHeaders.MetadataStartOffset;
    var changed = 0;

    foreach (var handle in metadata.TypeDefinitions)
    {
        // The attributes that the compiler writes into every assembly would clash with the ones in ours.
        var space = metadata.GetString(metadata.GetTypeDefinition(handle).Namespace);
        if (space == "System" || space.StartsWith("System.", StringComparison.Ordinal) || space == "Microsoft.CodeAnalysis") continue;

        ref var flags = ref image[Row(TableIndex.TypeDef, MetadataTokens.GetRowNumber(handle))];
        var access = (TypeAttributes)(flags & (int)TypeAttributes.VisibilityMask);
        var wanted = access switch
        {
            TypeAttributes.NotPublic => TypeAttributes.Public,
            TypeAttributes.NestedAssembly or TypeAttributes.NestedFamORAssem => TypeAttributes.NestedPublic,
            TypeAttributes.NestedFamANDAssem => TypeAttributes.NestedFamily,
            _ => access,
        };
        Set(ref flags, (int)access, (int)wanted);
    }

    // FieldAttributes and MethodAttributes have the same values for access.
    foreach (var handle in metadata.FieldDefinitions)
        SetMember(ref image[Row(TableIndex.Field, MetadataTokens.GetRowNumber(handle))]);
    const int flagsOfMethod = 6; // after RVA (4 bytes) and ImplFlags (2)
    foreach (var handle in metadata.MethodDefinitions)
        SetMember(ref image[Row(TableIndex.MethodDef, MetadataTokens.GetRowNumber(handle)) + flagsOfMethod]);
    return changed;

    int Row(TableIndex table, int number)
        => start + metadata.GetTableMetadataOffset(table) + (number - 1) * metadata.GetTableRowSize(table);

    void SetMember(ref byte flags)
    {
        var access = (MethodAttributes)(flags & (int)MethodAttributes.MemberAccessMask);
        var wanted = access switch
        {
            MethodAttributes.Assembly or MethodAttributes.FamORAssem => MethodAttributes.Public,
            MethodAttributes.FamANDAssem => MethodAttributes.Family,
            _ => access,
        };
        Set(ref flags, (int)access, (int)wanted);
    }

    void Set(ref byte flags, int from, int to)
    {
        if (from == to) return;
        flags = (byte)(flags & ~7 | to);
        changed++;
    }
}
